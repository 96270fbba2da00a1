"""CPython compiled to WebAssembly, for machines whose kernel confines no programs.

The server starts one instance, lets it import its library, and forks in the middle of a call that
the instance makes: each program, and each program's tests, go on in a copy of their own. All that
an instance can reach of this machine are the functions of ``wasi.py``; its files are ``files.py``.
"""
