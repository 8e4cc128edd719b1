"""One name, one thing, and names that explain themselves."""

import pytest

from harness import registry
from harness.errors import UserError
from harness.registry import PROJECT_ROOT
from tests.names import function_names, shared_names

CONVENTIONS = {
    "log",
    "T",
    "Tensor",
}  # a module's logger, a type variable, a short name for torch.Tensor: the same everywhere
LEAST_MEAN_LENGTH = 11  # characters; it was 7.3 before names were spelled out, and is 11 to 19 in well-kept projects


def test_a_name_means_one_thing():
    """No function, class or constant of two files has the same name, conventions aside."""
    assert set(shared_names(PROJECT_ROOT)) - CONVENTIONS == set()


def test_names_of_functions_explain_themselves():
    names = function_names(PROJECT_ROOT)
    assert sum(map(len, names)) / len(names) >= LEAST_MEAN_LENGTH


def test_the_script_finds_a_name_with_two_meanings(tmp_path):
    (tmp_path / "harness").mkdir()
    (tmp_path / "harness" / "a.py").write_text("def read(): ...\nLIMIT = 1\nclass Only: ...\n")
    (tmp_path / "harness" / "b.py").write_text("def read(): ...\nLIMIT = 2\n\ndef _own(): ...\n")
    assert shared_names(tmp_path) == {name: ["harness/a.py", "harness/b.py"] for name in ("LIMIT", "read")}
    assert function_names(tmp_path) == ["read", "read", "own"]


@pytest.mark.parametrize(
    ("base", "hook", "current"),
    [
        ("task.Task", "readings", "diagnostics"),
        ("method.Method", "ask", "questions"),
        ("method.Method", "guess", "estimated"),
    ],
)
def test_a_plugin_with_a_hook_of_its_former_name_is_refused(tmp_path, base, hook, current):
    """A hook that nothing calls any more would be left out silently."""
    module, name = base.split(".")
    file = tmp_path / f"old_{hook}.py"
    file.write_text(
        f'"""A plug-in of last year."""\nfrom harness.{module} import {name}\n\n'
        f"class Old({name}):\n    def {hook}(self, *arguments):\n        return {{}}\n"
    )
    registry.add_plugins([file])
    with pytest.raises(UserError, match=f"`{hook}` is now called `{current}"):
        registry.load_class(module, file.stem)
