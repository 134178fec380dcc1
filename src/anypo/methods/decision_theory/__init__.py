"""Methods with guarantees: tabular, linear and step-size theory."""
