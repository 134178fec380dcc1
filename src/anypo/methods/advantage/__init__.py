"""Credit: normalisation, segments, selection and objectives built on them."""
