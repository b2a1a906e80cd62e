"Settings for all tests"


def pytest_collection_modifyitems(items):
    "Browser tests run last: Playwright's synchronous browser keeps a loop running in the main thread, and no async test can start its own beside it"
    items.sort(key=lambda item: 'browser' in item.path.parts)
