"""The test suite, by what each part needs."""
