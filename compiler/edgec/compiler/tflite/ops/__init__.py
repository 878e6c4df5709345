"""The operators the writer knows, one function each; every module here is loaded by the registry."""
