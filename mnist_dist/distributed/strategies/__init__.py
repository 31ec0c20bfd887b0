"""How replicas work together: an interface, and a module for each strategy that `mnist_dist.strategies` lists."""
