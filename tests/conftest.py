import gc


def pytest_collection_finish() -> None:
    """What collecting the tests has made stays until the end: no search for circles looks at it again."""
    gc.collect()
    gc.freeze()
