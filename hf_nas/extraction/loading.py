"""Makes every transformers loading route build models with per-layer sizes.

`import hf_nas` wraps two methods of `PreTrainedModel`, through which the plain constructor, `from_config`,
`from_pretrained`, the Auto classes and `pipeline` all go. A model without such sizes, or of a family that hf-nas does
not know (some newer ones read the sizes themselves), passes through untouched.

Three more are wrapped to refuse damaged files: `PreTrainedConfig.get_config_dict`, which every route calls before
anything else, `PreTrainedModel.from_pretrained`, and what that calls once the weights are in the model. The loader
file of an extracted model is never run where hf-nas is installed, even with `trust_remote_code=True`.
"""

from functools import wraps
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from hf_nas.extraction.sizes import HIDDEN_FIELD, MODULE_NAME, STACKS_FIELD, build_sizes, hide_sizes
from hf_nas.extraction.stated import refuse_lost_weights
from hf_nas.extraction.verification import HASH_FIELD, check_files, check_model, extracted_folder
from hf_nas.structures import Family, family_of


def _family_or_none(config: PreTrainedConfig) -> Family | None:
    try:
        return family_of(config)
    except ValueError:
        return None


def _without_loader(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a configuration without those about the loader file, which hf-nas takes the place of."""
    fields = {name: value for name, value in fields.items() if name != HASH_FIELD}
    references = fields.get("auto_map")
    if isinstance(references, dict):
        others = {k: v for k, v in references.items() if not str(v).split("--")[-1].startswith(f"{MODULE_NAME}.")}
        fields = {name: value for name, value in fields.items() if name != "auto_map"}
        fields |= {"auto_map": others} if others else {}
    return fields


def _states_sizes(config: PreTrainedConfig) -> bool:
    uneven = getattr(config, "is_heterogeneous", False) or any(
        hasattr(config, field) for field in (STACKS_FIELD, HIDDEN_FIELD)
    )
    return uneven and _family_or_none(config) is not None


def install_loader() -> None:
    """Wrap five methods of transformers; a second call does nothing."""
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

    init.hf_nas_original = stock_init
    post_init.hf_nas_original = stock_post_init
    PreTrainedModel.__init__ = init
    PreTrainedModel.post_init = post_init
    _install_checks()


def _install_checks() -> None:
    stock_get_config_dict = PreTrainedConfig.get_config_dict.__func__
    stock_from_pretrained = PreTrainedModel.from_pretrained.__func__
    stock_finalize = PreTrainedModel._finalize_model_loading

    @wraps(stock_get_config_dict)
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        folder = extracted_folder(pretrained_model_name_or_path, kwargs.get("subfolder"))
        if folder is not None:
            check_files(folder)
        fields, kwargs = stock_get_config_dict(cls, pretrained_model_name_or_path, **kwargs)
        return _without_loader(fields), kwargs

    @wraps(stock_from_pretrained)
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        folder = extracted_folder(pretrained_model_name_or_path, kwargs.get("subfolder"))
        if folder is not None:
            check_files(folder)
        try:
            return stock_from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs)
        except RuntimeError as error:
            if folder is None or "ignore_mismatched_sizes" not in str(error):
                raise
            raise ValueError(
                f"The sizes that config.json in {str(folder)!r} states are not those of the weights beside it; "
                "restore both from one extraction, as with ignore_mismatched_sizes weights would be drawn at random."
            ) from error

    @wraps(stock_finalize)
    def finalize(model, load_config, loading_info):
        # Here and not at the end, since adapters are put into the model after it.
        loading_info = stock_finalize(model, load_config, loading_info)
        subfolder = (load_config.download_kwargs or {}).get("subfolder")
        folder = extracted_folder(load_config.pretrained_model_name_or_path, subfolder)
        if folder is not None or _states_sizes(model.config):
            refuse_lost_weights(model, loading_info.to_dict())
        if folder is not None:
            check_model(model, folder)
        return loading_info

    PreTrainedConfig.get_config_dict = classmethod(get_config_dict)
    PreTrainedModel.from_pretrained = classmethod(from_pretrained)
    PreTrainedModel._finalize_model_loading = staticmethod(finalize)
