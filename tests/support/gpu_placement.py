"""What TensorFlow would do on a host's CPU if a traced function ran on a GPU.

The wheel registers its GPU kernels whether there is a GPU or not. A node without one is
put on the CPU, and its tensors are copied; and a kernel may want some of its arguments
in the host's memory, as most do that take int32.
"""

import math

import tensorflow as tf
from tensorflow.python.framework import kernels

_UNPLACED = ("Placeholder", "NoOp")
# They pass buffers on, or give them another shape.
_WITHOUT_KERNEL = (
    *_UNPLACED,
    *("Const", "Identity", "IdentityN", "Reshape", "ReadVariableOp"),
    *("AssignVariableOp", "ExpandDims", "Squeeze"),
)
_KERNELS: dict[str, list] = {}


def has_gpu_kernels():
    """Whether this TensorFlow was built with them."""
    return any(k.device_type == "GPU" for k in _kernels("MatMul"))


def find_host_work(concrete_function):
    """Finds what a traced function would do on the host.

    Args:
      concrete_function: what it calls is looked at too, but for what XLA compiles,
        which needs no kernels: of that the arguments alone.

    Returns:
      The nodes without a GPU kernel, and (bytes, tensor) of all that lies in the host's
      memory, both sorted and without duplicates.
    """
    if concrete_function.function_def.attr["_XlaMustCompile"].b:
        arguments = [*concrete_function.inputs, *concrete_function.outputs]
        return [], sorted((_bytes(t), t.name) for t in arguments if t.dtype == tf.int32)
    return _find_in_graph(concrete_function.graph)


def count_step_operations(concrete_function):
    """Counts what the host starts for one step of a traced loop, for all replicas.

    Returns:
      How many clusters XLA compiles, and how many other operations there are, but for
      those that start no kernel.
    """
    (loop,) = [
        node
        for node in concrete_function.graph.get_operations()
        if node.type in ("While", "StatelessWhile")
    ]
    body = loop.node_def.attr["body"].func.name
    return _count_operations(concrete_function.graph._get_function(body).graph)


def _count_operations(graph):
    clusters = others = 0
    for node in graph.get_operations():
        called = _called_functions(node)
        if node.node_def.attr["_XlaMustCompile"].b:
            clusters += 1
        elif called:
            for name in called:
                inner = _count_operations(graph._get_function(name).graph)
                clusters, others = clusters + inner[0], others + inner[1]
        else:
            others += node.type not in _WITHOUT_KERNEL
    return clusters, others


def list_operations(graph):
    """All operations of a graph and of the functions that it calls."""
    operations = list(graph.get_operations())
    for node in graph.get_operations():
        for name in _called_functions(node):
            operations += list_operations(graph._get_function(name).graph)
    return operations


def _find_in_graph(graph):
    missing, on_host = set(), {}
    for node in graph.get_operations():
        called = _called_functions(node)
        if called:
            # A function takes and returns int32 in the host's memory.
            host = [t for t in [*node.inputs, *node.outputs] if t.dtype == tf.int32]
            if not node.node_def.attr["_XlaMustCompile"].b:
                for name in called:
                    function = graph._get_function(name)
                    more_missing, more_on_host = _find_in_graph(function.graph)
                    missing |= set(more_missing)
                    on_host |= {t: b for b, t in more_on_host}
        elif node.type in _UNPLACED:
            host = []
        elif (kernel := _gpu_kernel(node.node_def)) is None:
            missing.add(f"{node.type}({', '.join(t.dtype.name for t in node.inputs)})")
            host = [*node.inputs, *node.outputs]
        else:
            host = _host_tensors(node, set(kernel.host_memory_arg))
        for tensor in host:
            if tensor.dtype not in (tf.resource, tf.variant):
                on_host[f"{tensor.name} of {node.type} {node.name}"] = _bytes(tensor)
    return sorted(missing), sorted((b, t) for t, b in on_host.items())


def _called_functions(node):
    names = []
    for attr in node.node_def.attr.values():
        names += [f.name for f in [attr.func, *attr.list.func] if f.name]
    return names


def _kernels(op):
    if op not in _KERNELS:
        _KERNELS[op] = list(kernels.get_registered_kernels_for_op(op).kernel)
    return _KERNELS[op]


def _gpu_kernel(node_def):
    for device in ("GPU", "DEFAULT"):
        for kernel in _kernels(node_def.op):
            if kernel.device_type == device and _fits(kernel, node_def):
                return kernel
    return None


def _fits(kernel, node_def):
    for constraint in kernel.constraint:
        attr = node_def.attr[constraint.name]
        types = [attr.type] if attr.type else list(attr.list.type)
        if any(t not in constraint.allowed_values.list.type for t in types):
            return False
    return True


def _host_tensors(node, names):
    """The inputs and outputs that a node's kernel has in the host's memory."""
    tensors = []
    definition = node.op_def
    for arguments, values in (
        (definition.input_arg, list(node.inputs)),
        (definition.output_arg, list(node.outputs)),
    ):
        for argument in arguments:
            count = _count(argument, node.node_def)
            if argument.name in names:
                tensors += values[:count]
            values = values[count:]
    return tensors


def _count(argument, node_def):
    if argument.number_attr:
        return node_def.attr[argument.number_attr].i
    if argument.type_list_attr:
        return len(node_def.attr[argument.type_list_attr].list.type)
    return 1


def _bytes(tensor):
    if not tensor.shape.is_fully_defined():
        return 0 if tensor.dtype == tf.string else math.inf
    return tensor.shape.num_elements() * tensor.dtype.size
