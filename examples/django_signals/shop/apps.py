"""The app ``shop``."""

from __future__ import annotations

from django.apps import AppConfig


class ShopConfig(AppConfig):
    """Connects the app's signals when Django is ready."""

    name = "shop"

    def ready(self) -> None:
        """Import the receivers, which registers them."""
        from . import signals  # noqa: F401 - it needs the models, which are not ready before
