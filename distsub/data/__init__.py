"""Rows and labels: any file as text columns, and a task's rows split and subset the same way on every machine."""
