"""``python manage.py order teapot``."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandParser
from django.db import transaction

from ...models import Order


class Command(BaseCommand):
    """Places an order, as a view would."""

    help = "Place an order."

    def add_arguments(self, parser: CommandParser) -> None:
        """What to order."""
        parser.add_argument("item")
        parser.add_argument("--quantity", type=int, default=1)

    def handle(self, *, item: str, quantity: int, **_: Any) -> None:
        """Save it, and notify with the same commit."""
        with transaction.atomic():
            order = Order.objects.create(item=item, quantity=quantity)
        self.stdout.write(f"order {order.pk}")
