"""J_g(x), the Jacobian of a residual branch, as a linear map of each example of a batch."""
