"""Custom resource types (pydantic): the single source of crds/*.yaml, of defaults and of validation."""
