"""What this app announces, and what it does when it is notified."""

from __future__ import annotations

from typing import Any

from django.db import connections
from django.db.models import QuerySet
from django.db.models.signals import post_save
from django.dispatch import receiver

from pgsignals import Database, Notification, on_channel

from .listening import in_django, missed
from .models import Order, Receipt

CHANNEL = "shop.orders"


@receiver(post_save, sender=Order)
def tell(instance: Order, using: str, **_: Any) -> None:
    """Notify in the transaction that saves, so that it is sent with the commit or not at all."""
    with connections[using].cursor() as cursor:
        cursor.execute("SELECT pg_catalog.pg_notify(%s, %s)", [CHANNEL, str(instance.pk)])


@on_channel(CHANNEL)
@in_django
def order_saved(db: Database, notification: Notification) -> None:
    """An order was saved, in this process or another."""
    write_receipts(Order.objects.filter(pk=int(notification.payload)))


@receiver(missed)
@in_django
def catch_up(**_: Any) -> None:
    """We may have missed the notifications of some orders."""
    write_receipts(Order.objects.all())


def write_receipts(orders: QuerySet[Order]) -> None:
    """Write the receipts that are missing."""
    for order in orders.filter(receipt=None):
        Receipt.objects.get_or_create(order=order)  # another process may write it meanwhile
