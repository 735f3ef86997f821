"""What tests ask of Dask's graphs."""

import dask


def graph_of(*arrays):
    """What Dask would run to compute them all: nodes by their keys."""
    graph = {}
    for array in dask.optimize(*arrays):
        graph |= dict(array.__dask_graph__())
    return graph


def tasks(*arrays):
    """How many tasks of each name computing takes; data that lies ready is none."""
    # Dask makes one task of reading a block and of what is done to it, and writes both names.
    names = [key[0].rpartition("-")[0].removeprefix("array-") for key in dependencies(*arrays)]
    return {name: names.count(name) for name in names}


def dependencies(*arrays):
    """The keys that each task needs, by its own."""
    return {key: node.dependencies for key, node in graph_of(*arrays).items() if type(node).__name__ == "Task"}
