"""The laboratory: properties every method must have, experiments that claims are made of, the microscope and the ledger."""
