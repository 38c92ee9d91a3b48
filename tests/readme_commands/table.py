"""How every command that a page shows is tested: run by test_readme_commands.py, run by another test, or parsed.

A command that comes, goes or changes fails the test until it has its line here. `Run` is the rule; `RunBy` spares a
second run of what another test runs already; `Parsed` is for what no machine of ours can run in the time of a test.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Run:
    """Run as it stands, in a folder and a home of its own, by test_readme_commands.py.

    real: with the real model and data; hermetic otherwise: MODEL is a tiny random one, and there are no artifacts.
    instead: (what the page says, what is run): for placeholders, sizes that take too long, ports that may be taken.
    typed: standard input. until: what a server says when it is up; it is then stopped with Ctrl-C.
    shows: what stdout or stderr must hold, a regular expression.
    """

    real: bool = False
    instead: tuple[tuple[str, str], ...] = ()
    typed: str = ""
    until: str = ""
    shows: str = ""


@dataclass(frozen=True)
class RunBy:
    """Run by other tests already: "file::function", and what of the command (or of its recipe) stands in its source.

    In the place of a test: a line of .ci/run, which CI runs before the tests.
    """

    by: str
    mentions: str


@dataclass(frozen=True)
class Parsed:
    """Not run, for this reason; verbs, options, values, files and make targets are checked all the same."""

    why: str


HERMETIC, REAL = Run(), Run(real=True)
EXPORTED = Run(shows="files, .* MB, in ")
SMALLER = (("--limit 20", "--limit 1"),)  # of each of five categories
CI = ".ci/run"
PY = ".venv/bin/python -m"
PAPER = '"The capital of France is"'
LICENCE = '"do you need a tv license in uk"'
PIZZLY = f'{PY} step3_rag ask "what is a pizzly bear" --trace --grader overlap --collection encyclopaedia'
PAIRS = "out/step4/tools/third.jsonl out/step4/tools/pairs_full.jsonl --adapter shared/adapters/tools"
RANKS = " ".join(f"--adapter out/step4/rank{rank}/adapter" for rank in (4, 16, 64))
WEB_SHOP = '"web shop" --models smollm2-135m --requests-per-minute 60 --tokens-per-minute 20000 --cap 5'
ACCELERATE = ".venv/bin/accelerate launch --config_file step4_finetune/distributed/ddp.yaml -m step4_finetune.train"
OTLP = "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:6006"
DEPLOYED, CHARTS = "step5_serving/deploy", "prometheus-community"
LORA = "--enable-lora --lora-modules"
CHECKPOINT = ".venv/bin/python -m step5_serving.checkpoint smollm2-135m"

CLI2, EVAL2, OPENAPI = (f"tests/step2/test_{name}.py::test_" for name in ("step2_cli", "eval_verbs", "openapi"))
CLI3, ASK3, EVAL3 = (f"tests/step3/test_{name}.py::test_" for name in ("step3_cli", "cli_ask", "evaluation_suite"))
CLI4, EVAL4 = (f"tests/step4/test_{name}.py::test_" for name in ("step4_cli", "step4_eval"))
RECIPE = f"{CLI4}train_takes_a_recipe_by_name_or_file_and_knows_dpo_from_sft"
RESUMED = "tests/step4/test_train_resume.py::test_kill_9_then_the_same_command_ends_as_undisturbed"
PROMTOOL = "tests/step5/test_deploy_observability.py::test_promtool_accepts_the_rules_their_tests_pass_and_the_"
BENCH = RunBy("tests/step5/test_bench.py::test_a_whole_run_finds_the_delays_of_the_fake", "step5_serving bench")
SERVE = RunBy(
    "tests/step5/test_serving_ledger.py::test_an_orderly_end_lets_running_answers_finish", "step5_serving serve"
)
VLLM = (
    RunBy("tests/step5/test_serving_cli.py::test_vllms_command_line", "-m vllm.entrypoints.openai.api_server"),
    RunBy("tests/step5/test_serving_cli.py::test_vllms_command_line", "--lora-modules"),
    RunBy("tests/step5/test_step5_real.py::test_the_official_client", "adapters"),
)
NO_DOCKER = Parsed("takes a Docker daemon and the building of images; tests/step5/test_deploy_containers.py reads them")
NO_CLUSTER = Parsed("takes a Kubernetes cluster; tests/step5/test_deploy_containers.py validates the manifests")

TABLE: dict[str, Run | Parsed | RunBy | tuple[RunBy, ...]] = {
    # -- the repository ------------------------------------------------------------------------------------------------
    "make lint test": (RunBy(CI, "make lint"), RunBy(CI, "make test")),
    "make test": RunBy(CI, "make test"),
    "make test-real": RunBy(CI, "make test-real"),
    "make results": RunBy("tests/shared/test_results.py::test_check_fails_until_rendered", "shared.results render"),
    ".venv/bin/python -m scripts.size": Run(shows="lines in"),
    "make lock": Parsed("resolves against the registry and replaces requirements.lock; test_drift.py resolves, too"),
    "make drift": (
        RunBy("tests/test_drift.py::test_help_has_examples_and_a_wrong_check_is_bad_usage", "scripts.drift"),
        RunBy("tests/test_drift.py::test_the_program_prints_one_document_and_fails_when_something_broke", "drift"),
    ),
    "make read": RunBy("tests/test_read.py::test_no_page_scrolls_sideways", "scripts.read"),
    "make tour": RunBy("tests/test_tour.py::test_the_first_chapter_with_the_real_model", "scripts.tour"),
    f"{PY} shared.artifacts list": Run(shows="smollm2-135m"),
    f"{PY} shared.openai_server --port 8000": Run(instead=(("8000", "0"),), until="serving .* on http"),
    **{
        f"{PY} shared.openai_server --adapter shared/adapters/{name}": Run(
            real=True, instead=(("--adapter", "--port 0 --adapter"),), until=f"serving .*{name}.* on http"
        )
        for name in ("grader", "tools")
    },
    f'{PY} vllm.entrypoints.openai.api_server {LORA} grader=shared/adapters/grader --model "$({CHECKPOINT})"': VLLM,
    f'{PY} vllm.entrypoints.openai.api_server {LORA} tools=shared/adapters/tools --model "$({CHECKPOINT})"': VLLM,
    # -- step 1 --------------------------------------------------------------------------------------------------------
    "make step1": RunBy(CI, "make step1"),
    "MODEL=path/to/checkpoint make step1": (
        RunBy("tests/step1/test_generate.py::test_demo_runs_on_another_model", "demo"),
        RunBy("tests/step1/test_cli.py::test_model_from_the_environment", "MODEL"),
    ),
    "MODEL=Qwen/Qwen2.5-0.5B-Instruct make step1": RunBy(
        "tests/shared/test_hub.py::test_a_model_by_hub_id_answers", "MODEL="
    ),
    "MODEL=org/name@revision make step1": RunBy(
        "tests/shared/test_hub.py::test_a_model_by_hub_id_answers", "MODEL=org/name@revision"
    ),
    f"{PY} step1_foundations --help": HERMETIC,
    f'{PY} step1_foundations tokens "The year 2024, naïve 🙂" --chat': HERMETIC,
    f"{PY} step1_foundations load": HERMETIC,
    f"{PY} step1_foundations next {PAPER} --top-p 0.9 --target Paris": Run(shows="Paris"),
    f"{PY} step1_foundations embed king queen Paris France": Run(shows="picture: "),
    f'{PY} step1_foundations attention "the cat sat on the mat because the cat"': Run(shows="picture: "),
    f"{PY} step1_foundations lens {PAPER}": HERMETIC,
    f"{PY} step1_foundations ablate {PAPER} --target Paris": Run(shows="picture: "),
    f'{PY} step1_foundations generate "Name three colours." --explain': HERMETIC,
    f"{PY} step1_foundations chat": Run(typed="Hello\n/help\n"),
    f"{PY} step1_foundations report {PAPER} -o report.html": Run(shows=r"report\.html"),
    "make bench1": RunBy("tests/step1/test_generate.py::test_bench_runs_on_another_model", " bench"),
    "make export STEP=1 TO=~/look-inside NAME=look_inside": EXPORTED,
    # -- step 2 --------------------------------------------------------------------------------------------------------
    "make step2": RunBy(CI, "make step2"),
    "make step2 step3": (  # with OPENAI_BASE_URL
        RunBy(f"{CLI2}a_question_that_needs_three_calls_in_the_sandbox", "make step2"),
        RunBy(f"{ASK3}ask_works_with_another_endpoint_and_a_real_collection", "step3"),
    ),
    f"{PY} step2_tool_calling --help": HERMETIC,
    f"{PY} step2_tool_calling tools": Run(shows="get_weather"),
    f"{PY} step2_tool_calling tools get_weather --schema": Run(shows='"city"'),
    f'{PY} step2_tool_calling ask "What is 15% of 80?" --only calculate': Run(real=True, shows=r"\b12\b"),
    f'{PY} step2_tool_calling ask "…" --tools my_tools.py': RunBy(
        f"{CLI2}json_is_one_document_and_silence", "--tools my_tools.py"
    ),
    f'{PY} step2_tool_calling ask "…" --openapi https://example.org/openapi.json': (
        RunBy(f"{CLI2}a_document_on_a_private_address_is_refused", "--openapi"),
        RunBy(f"{OPENAPI}a_document_that_another_program_wrote", "openapi.json"),
    ),
    f'{PY} step2_tool_calling ask "…" --mcp "uvx some-mcp-server"': RunBy(f"{CLI2}tools_of_an_mcp_server", "--mcp"),
    f'ADAPTER=out/mine/adapter {PY} step2_tool_calling ask "…"': Run(
        real=True, instead=(("out/mine/adapter", "shared/adapters/tools"), ("…", "What time is it in Tokyo?"))
    ),
    f"{PY} step2_tool_calling chat --sandbox": Run(real=True, typed="/tools\n/cost\n", shows="get_weather"),
    f"{PY} step2_tool_calling prompts": Run(shows="examples"),
    f"{PY} step2_tool_calling eval --prompts plain,examples --strategy native --limit 20": Run(
        real=True, instead=(("--limit 20", "--limit 1 --categories simple_python"),), shows="native, examples"
    ),
    f"{PY} step2_tool_calling compare out/step2/eval/A.jsonl out/step2/eval/B.jsonl": RunBy(
        f"{EVAL2}eval_writes_rows_that_compare_and_calibrate_read", "compare"
    ),
    f"{PY} step2_tool_calling log": Run(real=True, shows="15% of 80"),
    f"{PY} step2_tool_calling replay 1": REAL,
    "make bench2": Parsed("measures: a minute, and only what an idle machine says counts"),
    "make export STEP=2 TO=~/my-agent NAME=my_agent": EXPORTED,
    # -- step 3 --------------------------------------------------------------------------------------------------------
    "make step3": RunBy("tests/step3/test_demo.py::test_the_demo_answers_rewrites_and_declines", "step3_rag demo"),
    "make step3-ui": RunBy(f"{CLI3}ui_opens_the_page_on_the_chosen_collection", " ui "),
    f"{PY} step3_rag --help": HERMETIC,
    f"{PY} step3_rag ingest ~/notes paper.pdf --collection work": Run(real=True, shows="2 added"),
    f"{PY} step3_rag ingest ~/notes ~/papers --collection mine": Run(real=True, shows="2 added"),
    f'{PY} step3_rag ask "what did I write about backups?" --collection work --trace': Run(real=True, shows="retrieve"),
    f'{PY} step3_rag ask "…" --collection mine': RunBy(
        f"{ASK3}ask_works_with_another_endpoint_and_a_real_collection", " ask "
    ),
    f"{PY} step3_rag chat --collection work": Run(real=True, typed="/help\n", shows="/undo"),
    f"{PY} step3_rag sources --collection work": Run(real=True, shows=r"paper\.pdf"),
    f"{PY} step3_rag search {LICENCE} --explain --collection encyclopaedia": Run(real=True, shows="fused"),
    f"{PY} step3_rag search {LICENCE} --rerank late --mmr 0.7 --collection encyclopaedia": REAL,
    f'{PY} step3_rag route "thanks, that helped" --explain': Run(real=True, shows="small_talk"),
    PIZZLY: Run(real=True, shows="grade"),
    f"{PY} step3_rag calibrate --graders embedding,overlap": RunBy(
        f"{EVAL3}calibrate_writes_what_is_loaded_afterwards", "calibrate --graders"
    ),
    f"{PY} step3_rag eval all --results step3_rag/results": RunBy(
        f"{EVAL3}everything_is_measured_written_and_not_measured_again", "eval all"
    ),
    f"{PY} step3_rag eval answers --limit 10 --graders embedding": RunBy(
        f"{EVAL3}everything_is_measured_written_and_not_measured_again", "answers"
    ),
    ".venv/bin/uv pip install -c requirements.lock -e 'step3_rag[speed]'": Parsed(
        "would change the environment that the tests run in"
    ),
    f"{PY} step3_rag.speed -o step3_rag/results": Parsed(
        "half an hour, on an idle machine; tests/step3/test_speed.py has it at a tiny size"
    ),
    ".venv/bin/chroma run --path ~/chroma": RunBy(
        "tests/step3/test_ingest_interrupted.py::test_a_chroma_server_gives_the_same_answers", "chroma run"
    ),
    f"CHROMA_URL=http://localhost:8000 {PY} step3_rag ingest ~/notes": RunBy(
        "tests/step3/test_ingest_interrupted.py::test_a_chroma_server_gives_the_same_answers", "CHROMA_URL"
    ),
    "make export STEP=3 TO=~/my-rag NAME=my_rag": EXPORTED,
    # -- step 4 --------------------------------------------------------------------------------------------------------
    "make step4": RunBy(
        "tests/step4/test_step4_pipeline.py::test_the_demo_goes_through_all_stages_and_prints_before_and_after", "demo"
    ),
    f"{PY} step4_finetune --help": HERMETIC,
    f"{PY} step4_finetune data build tools": REAL,
    f"{PY} step4_finetune data stats tools": REAL,
    f"{PY} step4_finetune data show tools --kind parallel": Run(real=True, shows="answer"),
    f"{PY} step4_finetune train tools_sft_quick --set lora_r=4 --set lora_alpha=8 --set output_dir=out/step4/rank4": (
        RunBy(RECIPE, "train tools_sft_quick --set"),
        RunBy(RESUMED, "train"),
    ),
    f"{PY} step4_finetune train tools_sft_full --set data=mine.jsonl --set output_dir=out/mine": (
        RunBy(RECIPE, "--set"),
        RunBy(RESUMED, "train"),
    ),
    f"{PY} step4_finetune train tools_sft_full": (RunBy(RECIPE, "train tools_sft"), RunBy(RESUMED, "train")),
    f"{PY} step4_finetune train tools_sft_second": RunBy(
        "tests/step4/test_train_resume.py::test_a_recipe_goes_on_from_an_adapter", "train"
    ),
    f"{PY} step4_finetune train tools_dpo_full": RunBy(RECIPE, "tools_dpo_full"),
    f"{PY} step4_finetune.train_bench step4_finetune/recipes/tools_sft_full.yaml --steps 4": Parsed(
        "several minutes of training with two trainers, on an idle machine"
    ),
    f"{PY} step4_finetune.dpo_pairs {PAIRS} --limit 400": RunBy(
        "tests/step4/test_dpo_pairs.py::test_the_command_writes_pairs_and_report", "dpo_pairs"
    ),
    f"{PY} step4_finetune eval bfcl --adapter tools --prompt none --limit 20": Run(real=True, instead=SMALLER),
    f"{PY} step4_finetune eval unseen_tools {RANKS} --prompt none --limit 20": RunBy(
        f"{EVAL4}the_embedded_engine_serves_two_adapters_that_are_called_alike", "adapter"
    ),
    f"{PY} step4_finetune eval bfcl --adapter tools --limit 50": RunBy(
        f"{EVAL4}eval_again_asks_nothing_and_another_adapter_joins_the_table", "eval bfcl"
    ),
    f"MODEL=path/to/model {PY} step4_finetune eval bfcl --limit 20": RunBy(
        f"{EVAL4}the_embedded_engine_serves_two_adapters_that_are_called_alike", "model"
    ),
    f"OPENAI_BASE_URL=http://127.0.0.1:8000/v1 {PY} step4_finetune eval bfcl --limit 20": (
        RunBy(f"{EVAL4}eval_of_an_endpoint_makes_the_columns_and_their_changes", "OPENAI_BASE_URL"),
    ),
    f"{PY} step4_finetune eval regressions --adapter tools --adapter grader --limit 500": RunBy(
        f"{EVAL4}regressions_are_measured_per_adapter", "regressions"
    ),
    f"{PY} step4_finetune compare out/step4/eval/A.jsonl out/step4/eval/B.jsonl": RunBy(
        f"{EVAL4}compare_shows_changes_and_items", "compare"
    ),
    f"{PY} step4_finetune.hand_off tools": Run(
        real=True, instead=(("tools", "tools --limit 2"),), shows=r"merged, float32: \d of 2"
    ),
    f"{PY} step4_finetune.hand_off tools --against http://127.0.0.1:8080/v1": RunBy(
        "tests/step5/test_step5_real.py::test_an_adapter_of_step_4_says_the_same_on_it", "step4_finetune.hand_off"
    ),
    f"{PY} step4_finetune report": Run(real=True, shows=r"report\.html"),
    f"{ACCELERATE} step4_finetune/recipes/tools_sft_full.yaml": RunBy(
        "tests/step4/test_distributed.py::test_two_processes_train_as_one_with_the_same_global_batch",
        "launch --config_file",
    ),
    f"{PY} step4_finetune merge shared/adapters/grader --to merged": Run(real=True, shows="merged"),
    f"{PY} step4_finetune merge shared/adapters/tools --to merged": RunBy(
        "tests/step4/test_adapters.py::test_publish_and_merge_are_verbs", "merge"
    ),
    "make export STEP=4 TO=~/my-tuning NAME=my_tuning": EXPORTED,
    # -- step 5 --------------------------------------------------------------------------------------------------------
    "make step5": SERVE,
    "make step5-demo": RunBy(
        "tests/step5/test_serving_demo.py::test_it_chats_calls_a_tool_and_says_what_that_cost", "demo"
    ),
    f"{PY} step5_serving --help": HERMETIC,
    f"{PY} step5_serving keys create {WEB_SHOP}": Run(shows="sk-"),
    f"{PY} step5_serving keys list": Run(shows="web shop"),
    f'{PY} step5_serving keys revoke "web shop"': HERMETIC,
    f"KEY=$({PY} step5_serving keys create me)": Run(
        instead=(("KEY=$(", ""), (")", "")),  # a shell's
        shows=r"(?m)^sk-\w{8}-\S{43}$",
    ),
    f"{PY} step5_serving usage --by key,model --days 7": Run(shows="requests"),
    'curl -s localhost:8080/v1/usage -H "authorization: Bearer $KEY"': RunBy(
        "tests/step5/test_serving_ledger.py::test_usage_by_key_model_and_day", "/v1/usage"
    ),
    "make bench5": BENCH,
    "make fuzz5": Parsed(
        "half an hour; tests/step5/test_serving_fuzz.py makes the same storm of a few hundred requests"
    ),
    f"{PY} step5_serving bench --targets embedded,embedded+gateway": (
        BENCH,
        RunBy("tests/step5/test_bench.py::test_what_cannot_be_measured_is_refused", "bench --targets embedded"),
    ),
    f"{PY} step5_serving quantise smollm2-135m int8-model": Run(real=True, shows="int8-model"),
    f"{PY} step5_serving.overhead --help": HERMETIC,
    "make export STEP=5 TO=~/my-gateway NAME=my_gateway": EXPORTED,
    # -- step 5, past one terminal -------------------------------------------------------------------------------------
    f"promtool check rules {DEPLOYED}/prometheus/rules.yml": RunBy(f"{PROMTOOL}configuration_is_valid", "check rules"),
    f"promtool test rules {DEPLOYED}/prometheus/rules_test.yml": RunBy(
        f"{PROMTOOL}configuration_is_valid", "test rules"
    ),
    f"cd {DEPLOYED} && mkdir -p -m 700 secrets": Parsed("makes a folder in the checkout, for the next commands"),
    "docker compose build": NO_DOCKER,
    "docker compose run --rm gateway keys create me": NO_DOCKER,
    "docker compose run --rm -T gateway keys create prometheus --models none > secrets/prometheus_key": NO_DOCKER,
    "head -c 18 /dev/urandom | base64 > secrets/grafana_password && chmod 644 secrets/*": Parsed(
        "writes a secret into the checkout; head, base64 and chmod are not ours"
    ),
    "docker compose up": NO_DOCKER,
    f"kubectl apply -k {DEPLOYED}/kubernetes": NO_CLUSTER,
    "kubectl -n step5 exec -it deploy/gateway -c wait-for-key -- python -m step5_serving keys create me": NO_CLUSTER,
    f"helm repo add {CHARTS} https://{CHARTS}.github.io/helm-charts": NO_CLUSTER,
    f"helm install adapter {CHARTS}/prometheus-adapter -f {DEPLOYED}/kubernetes/adapter-values.yaml": NO_CLUSTER,
    ".venv/bin/uv pip install -c requirements.lock -e 'step5_serving[ray]'": Parsed(
        "would change the environment that the tests run in"
    ),
    f".venv/bin/serve deploy {DEPLOYED}/ray_serve.yaml": RunBy(
        "tests/step5/test_ray_serve.py::test_a_replica_killed_under_load_loses_only_streams_that_had_begun", "ray_serve"
    ),
    f"{PY} step5_serving serve --engine-url http://node1:8000 --engine-url http://node2:8000 --slots 128": RunBy(
        SERVE.by, "step5_serving serve"
    ),
    f"{PY} step5_serving.deploy.capacity --prompt 300 --completion 100": Run(shows="1,?000"),
    "make step5-trace": Parsed("installs 650 MB from the registry; its spans are tested with a collector of our own"),
    f"{OTLP} make step5": RunBy(
        "tests/step5/test_serving_observability.py::test_spans_reach_a_collector", "OTEL_EXPORTER_OTLP_ENDPOINT"
    ),
    f"{PY} step5_serving serve -- --otlp-traces-endpoint http://127.0.0.1:6006/v1/traces": (
        RunBy("tests/step5/test_serving_cli.py::test_vllms_command_line", "--otlp-traces-endpoint"),
    ),
}
