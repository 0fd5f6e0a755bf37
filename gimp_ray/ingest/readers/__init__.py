"""Readers of case tables, gene sets and sample sheets."""
