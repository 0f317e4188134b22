"""What every API type shares: camelCase on the wire, snake_case in code, the group's name."""

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

GROUP = "wattkeeper.io"
VERSION = "v1alpha1"


class ApiModel(BaseModel):
    """A part of a custom resource. Fields that this version does not know are ignored, as API servers prune them."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)
