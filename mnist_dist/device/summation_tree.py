"""The order in which microbatches are added: a balanced binary tree over all of them.

Floating-point sums depend on their order. Every replica adds those of its microbatches
that form whole subtrees; the rest of the tree is added over the replicas. So each sum
has the same two terms on any number of replicas.
"""

Node = tuple[int, int]  # the first microbatch of a subtree, and the one after its last


def children(node: Node) -> tuple[Node, Node]:
    """Returns the two subtrees of a node of two or more microbatches."""
    first, end = node
    half = 1 << ((end - first - 1).bit_length() - 1)
    return (first, first + half), (first + half, end)


def whole_subtrees(root: Node, part: Node) -> list[Node]:
    """Returns the largest subtrees of `root` that lie in a part of it, in order."""
    if part[1] <= root[0] or root[1] <= part[0]:
        return []
    if part[0] <= root[0] and root[1] <= part[1]:
        return [root]
    left, right = children(root)
    return whole_subtrees(left, part) + whole_subtrees(right, part)


def count_additions(node: Node) -> list[int]:
    """Returns how many additions follow each microbatch of a subtree.

    Each adds the newest two sums that are there. So the sums still to be added are
    never more than the tree is high.
    """
    if node[1] - node[0] == 1:
        return [0]
    left, right = children(node)
    counts = count_additions(left) + count_additions(right)
    counts[-1] += 1
    return counts
