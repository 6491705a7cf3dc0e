"""Makes every transformers loading route build models with per-layer sizes.

`import hf_nas` wraps two methods of `PreTrainedModel`, through which the plain constructor, `from_config`,
`from_pretrained`, the Auto classes and `pipeline` all go. A model without such sizes, or of a family that hf-nas does
not know (some newer ones read the sizes themselves), passes through untouched.
"""

from functools import wraps

from transformers import PreTrainedConfig, PreTrainedModel

from hf_nas.extraction.sizes import HIDDEN_FIELD, MODULE_NAME, STACKS_FIELD, build_sizes, hide_sizes
from hf_nas.structures import Family, family_of


def _family_or_none(config: PreTrainedConfig) -> Family | None:
    try:
        return family_of(config)
    except ValueError:
        return None


def _forget_remote_code(model: PreTrainedModel) -> None:
    """Drop the reference to the loader file, which `save_pretrained` of a stock class would not copy."""
    entries = getattr(model.config, "auto_map", None)
    if not entries or type(model).__module__.startswith("transformers_modules"):
        return
    others = {name: path for name, path in entries.items() if not path.startswith(f"{MODULE_NAME}.")}
    if others:
        model.config.auto_map = others
    else:
        del model.config.auto_map


def install_loader() -> None:
    """Wrap `PreTrainedModel.__init__` and `post_init`; a second call does nothing."""
    if hasattr(PreTrainedModel.__init__, "hf_nas_original"):
        return
    stock_init, stock_post_init = PreTrainedModel.__init__, PreTrainedModel.post_init

    @wraps(stock_init)
    def init(self, config, *args, **kwargs):
        if getattr(config, "is_heterogeneous", False) and _family_or_none(config) is not None:
            hide_sizes(config, self)
        elif isinstance(config, PreTrainedConfig) and "_hf_nas_pending_sizes" in config.__dict__:
            hide_sizes(config, self)
        stock_init(self, config, *args, **kwargs)

    @wraps(stock_post_init)
    def post_init(self):
        stock_post_init(self)
        stated = any(hasattr(self.config, field) for field in (STACKS_FIELD, HIDDEN_FIELD))
        if stated or "_hf_nas_pending_sizes" in self.config.__dict__:
            family = _family_or_none(self.config)
            if family is not None:
                build_sizes(self, family)
                _forget_remote_code(self)

    init.hf_nas_original = stock_init
    post_init.hf_nas_original = stock_post_init
    PreTrainedModel.__init__ = init
    PreTrainedModel.post_init = post_init
