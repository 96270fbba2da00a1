"""What training would ask of a device, found without the device: operations, shapes, memory."""

from wmtp.audit.simulate import simulate
from wmtp.audit.trace import PARTS, Allocation, Form, Operation, Part, Trace

__all__ = ["PARTS", "Allocation", "Form", "Operation", "Part", "Trace", "simulate"]
