"""Templates of a dvc.yaml: ``vars``, ``${}``, ``foreach`` and ``matrix``, resolved as DVC resolves them.

Source of the format: DVC 3.x (``dvc/parsing``, ``dvc/schema.py``).
"""

from dvkf_prefect.formats.template.expansion import JOIN, Instance, Resolver
from dvkf_prefect.formats.template.schema import OUT_KEYS, check_document
from dvkf_prefect.formats.template.source import Place, SourceFile, one_of

__all__ = ["JOIN", "OUT_KEYS", "Instance", "Place", "Resolver", "SourceFile", "check_document", "one_of"]
