"""The peers, each a script that runs in a fresh process, some in an environment of their own."""
