#!/usr/bin/env bash
# EFTNAS on SQuAD, step by step: teacher, importance, search space, super-network, search, extraction.
#
#   eftnas_squad.sh MODEL DATA_DIR OUTPUT_DIR [FLAGS...]
#
# MODEL is a pretrained model, DATA_DIR a folder with train.parquet and validation.parquet; FLAGS are added to every
# step and win, e.g. --seed 1. What is finished is not done again, so a killed run continues with the same command.
# The settings are for all-MiniLM-L6-v2; --bf16 helps where the hardware computes in it.
set -euo pipefail
if [ $# -lt 3 ]; then
  echo "usage: $(basename "$0") MODEL DATA_DIR OUTPUT_DIR [FLAGS...]" >&2
  exit 2
fi
model=$1 data=$2 output=$3
shift 3
script="$(dirname "${BASH_SOURCE[0]}")/run_qa.py"
common=(--data_dir "$data" --model_name_or_path "$model" --do_train --pad_to_max_length False
  --max_seq_length 192 --doc_stride 64 --per_device_train_batch_size 16 --per_device_eval_batch_size 64
  --learning_rate 1e-4 --warmup_steps 0.06 --weight_decay 0.01 --train_sampling_strategy group_by_length
  --save_strategy steps --save_steps 200 --save_total_limit 1 --logging_steps 20)

# The super-network starts from its teacher, which therefore must not have seen the rows of the search.
python "$script" "${common[@]}" --do_eval --sampling_strategy standard --importance none --selection_split 0.1 \
  --num_train_epochs 2 --output_dir "$output/teacher" "$@"

python "$script" "${common[@]}" --only_generate_importance_weight --selection_split 0.1 \
  --movement_warmup_start_epoch 0.25 --movement_warmup_end_epoch 1 --movement_num_train_epochs 2 \
  --output_dir "$output/importance" "$@"

python "$script" "${common[@]}" --do_eval --do_search --sampling_strategy sandwich --selection_split 0.1 \
  --model_name_or_path "$output/teacher" \
  --importance movement --reorg_cache_model "$output/importance/movement_sparsity" \
  --search_space generated --space_smallest 0.45 --space_count 5 \
  --kd_teacher_model "$output/teacher" --num_train_epochs 6 \
  --search_strategy nsga2 --num_samples 60 --max_selection_samples 2000 --search_objectives error macs \
  --max_macs_ratio 0.5 --output_dir "$output/super_network" "$@"

echo "The extracted model is in $output/super_network/extracted."
