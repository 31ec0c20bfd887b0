"""The same work as users would do it elsewhere, and goals for how we compare."""
