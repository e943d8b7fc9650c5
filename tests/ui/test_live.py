"""The numbers and phases of a run while it goes on: with units, and each in its place from the start."""

from lora_studio.jobs.events import (
    DataPrepared,
    Evaluated,
    Event,
    Finished,
    ModelLoaded,
    PhaseStarted,
    RunStarted,
    StepLogged,
    fold,
)
from lora_studio.ui.runs import header

STARTED = RunStarted(100.0, 1, "cpu", "float32")
TRAINING: list[Event] = [
    STARTED,
    PhaseStarted(101.0, "train", 120, "steps"),
    StepLogged(110.0, 20, 120, 0.5, loss=1.5, learning_rate=1e-3, tokens_per_second=1234.4),
    StepLogged(
        120.0,
        30,
        120,
        0.75,
        loss=1.25,
        learning_rate=1e-3,
        token_accuracy=0.51234,
        tokens_per_second=1000.4,
        memory_bytes=2 * 1024**3,
        memory_peak_bytes=3 * 1024**3,
        memory_available_bytes=8 * 1024**3,
        device_load=57.2,
        device_celsius=61.0,
    ),
]


def tiles(events: list[Event], now: float = 130.0) -> dict[str, tuple[str, str]]:
    run = fold(events)
    return {
        label: (value, remark.strip()) for value, label, remark in header.numbers(run, now) + header.more_numbers(run)
    }


def test_the_numbers_of_a_run_hold_steps_losses_speed_and_times() -> None:
    more: list[Event] = [
        DataPrepared(101.0, 225, 25, 0, 0, 9000, 4000, "f", "chat"),
        ModelLoaded(102.0, 3_000_000, 300_000, 0),
        Evaluated(120.0, 30, 0.75, loss=1.125),
    ]
    found = tiles([*TRAINING, *more])
    assert found["Step"] == ("30", "of 120, epoch 0.75")
    assert found["Training loss"] == ("1.25", "nats/token")
    assert found["Validation loss"] == ("1.125", "best at step 30")
    assert found["Token accuracy"][0] == "51.2 %"
    assert found["Speed"] == ("1,000", "tokens/s")
    assert found["Memory"] == ("2.00 GiB", "at most 3.00 of 8.0 GiB")
    assert found["CPU utilization"] == ("57 %", "61 °C")
    assert found["ETA"] == ("1 min 30 s", "30 s elapsed")
    assert found["Trainable parameters"] == ("300,000", "10.00 % of the model")
    assert found["Training rows"] == ("225", "25 validation rows")


def test_a_gpu_is_named_and_an_ended_run_shows_its_time() -> None:
    on_gpu: list[Event] = [RunStarted(100.0, 1, "NVIDIA H200", "bfloat16", device_kind="cuda"), *TRAINING[1:]]
    assert "GPU utilization" in tiles(on_gpu)
    assert tiles([*on_gpu, Finished(200.0, "done", 120)])["Time"][0] == "1 min 40 s"


def test_six_numbers_are_seen_first() -> None:
    assert len(header.numbers(fold(TRAINING), 130.0)) == 6


def test_every_number_has_its_place_before_the_first_step() -> None:
    assert list(tiles([STARTED])) == list(tiles(TRAINING))
    assert tiles([STARTED])["Training loss"][0] == "–"


def test_phases_are_done_now_or_next() -> None:
    marks = [state for _, state in header.stations(fold(TRAINING))]
    assert marks == ["done", "done", "done", "now", "next", "next"]
    assert '<li class="now" aria-current=step>' in header.phases(fold(TRAINING))


def test_a_download_belongs_to_the_model_and_a_measurement_to_training() -> None:
    for phase, place in (("download", 2), ("evaluate", 3)):
        found = header.stations(fold([STARTED, PhaseStarted(101.0, phase, 10, "batches")]))
        assert found[place][1] == "now"


def test_an_ended_run_says_how_far_it_came() -> None:
    failed = header.stations(fold([*TRAINING, Finished(200.0, "failed", 30)]))
    assert [state for _, state in failed] == ["done", "done", "done", "ended", "next", "next"]
    done = header.stations(fold([*TRAINING, Finished(200.0, "done", 120)]))
    assert {state for _, state in done} == {"done"}
