"""Reading YAML configs without running code.

The official ADE20K semantic configs hold ``!!python/object/apply:eval ["[int(x * 0.1 * 640) for x
in range(5, 21)]"]``. Exactly this family (a list comprehension of arithmetic over one range) is
computed here by walking its syntax tree; everything else that would run code is refused.
"""

import ast
import math
import operator
import re

_EVAL_TAG = re.compile(r"""!!python/object/apply:eval\s*\[\s*(["'])(?P<code>.*?)\1\s*\]""")
_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}
_FUNCTIONS = {"int": int, "round": round, "float": float}
_MAX_ITEMS = 1000


def evaluate_list_comprehension(code: str) -> list:
    """Value of ``[<arithmetic in x> for x in range(...)]``, computed without ``eval``.

    Arithmetic is + - * / // on numbers and the loop variable, inside ``int``, ``round`` or
    ``float`` if wished.

    Raises:
        ValueError: for any other expression, with the rewritten line to paste.
    """
    try:
        tree = ast.parse(code.strip(), mode="eval").body
        (loop,) = tree.generators if isinstance(tree, ast.ListComp) else ()
        if loop.ifs or loop.is_async or not isinstance(loop.target, ast.Name):
            raise ValueError("only a plain 'for x in range(...)' is understood")
        name = loop.target.id
        items = _range(loop.iter)
        return [_arithmetic(tree.elt, {name: x}) for x in items]
    except (SyntaxError, ValueError, TypeError, ZeroDivisionError, OverflowError) as error:
        raise ValueError(
            f"refused to evaluate {code!r} ({error}). Write the list out instead, "
            "e.g. MIN_SIZE_TRAIN: [320, 384, 448]"
        ) from error


def rewrite_eval_tags(text: str) -> str:
    """YAML text with each ``!!python/object/apply:eval`` replaced by the list it stands for."""
    return _EVAL_TAG.sub(lambda tag: str(evaluate_list_comprehension(tag["code"])), text)


def _range(node: ast.expr) -> range:
    is_range = isinstance(node, ast.Call) and getattr(node.func, "id", None) == "range"
    if not is_range or node.keywords:
        raise ValueError("the loop must run over range(...)")
    items = range(*(_arithmetic(argument, {}) for argument in node.args))
    if len(items) > _MAX_ITEMS:
        raise ValueError(f"a range of more than {_MAX_ITEMS} items")
    return items


def _arithmetic(node: ast.expr, names: dict[str, float]) -> float:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value
    if isinstance(node, ast.Name) and node.id in names:
        return names[node.id]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_arithmetic(node.operand, names)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        value = _OPERATORS[type(node.op)](
            _arithmetic(node.left, names), _arithmetic(node.right, names)
        )
        if not math.isfinite(value):
            raise ValueError("the result is not finite")
        return value
    if isinstance(node, ast.Call) and len(node.args) == 1 and not node.keywords:
        function = _FUNCTIONS.get(getattr(node.func, "id", ""))
        if function is not None:
            return function(_arithmetic(node.args[0], names))
    raise ValueError(f"{ast.unparse(node)!r} is not plain arithmetic")
