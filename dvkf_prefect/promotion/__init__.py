"""Promotion and rollback of models: gates, approval, stage, services and mirrors as one act."""
