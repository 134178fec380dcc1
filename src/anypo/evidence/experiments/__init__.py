"""The laboratory: experiments that claims are tested with."""
