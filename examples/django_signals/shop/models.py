"""Orders, and a receipt for each."""

from __future__ import annotations

from django.db import models


class Order(models.Model):
    """An item that a customer has ordered."""

    item = models.CharField(max_length=100)
    quantity = models.PositiveIntegerField(default=1)


class Receipt(models.Model):
    """Written by the handler.  Its key is the order's, so an order has at most one."""

    order = models.OneToOneField(Order, models.CASCADE, primary_key=True)
    written = models.DateTimeField(auto_now_add=True)
