"""Networks as files for a runtime, each behind a parity gate."""
