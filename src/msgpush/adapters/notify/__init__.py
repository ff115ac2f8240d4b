"""Notifiers: Web Push, FCM and APNs."""
