"""How an epoch reaches a worker: `plan` (pure arithmetic), `windows` (reads), `batches` (Ray Data)."""
