"""`python -m resflow_bench` is `resflow-bench`."""

from resflow_bench.cli import main

if __name__ == "__main__":
    main()
