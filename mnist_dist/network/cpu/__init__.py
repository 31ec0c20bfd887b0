"""The network in the form that CPUs compute fast; only `network.forward` knows what is in here."""
