"""The shipped recipes: settings files that `--config` finds by name."""

from pathlib import Path

import loratune
from loratune.errors import UserError

RECIPES_FOLDER = Path(loratune.__file__).with_name("recipes")


def list_recipes() -> list[str]:
    return sorted(path.stem for path in RECIPES_FOLDER.glob("*.toml"))


def find_settings_file(name: str) -> Path:
    """Return the settings file that `--config` names.

    Args:
        name: a file of the user's, which wins, or a shipped recipe: `gpt2` or, as in a checkout,
            `recipes/gpt2.toml`.

    Raises:
        UserError: there is neither such a file nor such a recipe; with the names of all recipes.
    """
    path = Path(name)
    recipes = list_recipes()
    if not path.is_file():
        for recipe in recipes:
            if path in (Path(recipe), Path("recipes", f"{recipe}.toml")):
                return RECIPES_FOLDER / f"{recipe}.toml"
    if not path.exists():
        raise UserError(
            "there is no such file and no such recipe",
            setting="config",
            value=name,
            remedy=f"the recipes are {', '.join(recipes)}",
        )
    return path
