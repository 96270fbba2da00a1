"""What runs in the isolated Python of the sandbox: the standard library only, nothing else of wmtp.

The parts are a fork server, which is started once; a supervisor for each program, which sets its
limits and watches them; the program's process; and the process of the tests.
"""
