"""Several processes that train one network, over MPI: sums whose bits do not depend on the number of processes."""
