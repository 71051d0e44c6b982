"""The findings of `img2img doctor`: the versions, the device, the model, and what is wrong."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from models.embedded.vocabulary import demo_notice
from server import __version__
from server.cpus import set_tensor_threads, usable_cpus
from server.engine_service import safety_model
from server.extras import missing_extras, missing_requirements
from server.http.listening import CannotListen, close, listen
from server.img2img.deny_list import DenyList, DenyListError
from server.memory_plan import memory_policy
from server.settings import Settings, misplaced_key, renamed_variables, unknown_variables

if TYPE_CHECKING:
    from models.auxiliary.safety_checker import SafetyModel
    from models.bundle import ModelBundle


@dataclass
class Diagnosis:
    """Facts by name, and a line for each problem."""

    facts: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def diagnose(settings: Settings) -> Diagnosis:
    """Load the model as the server would, without starting the engine."""
    import torch

    from models.acceleration.attention import attention_backends
    from models.acceleration.modes import choose_acceleration, describe_forwards
    from models.auxiliary.choose import choose_clip
    from models.loading.loader import ModelLoadError, load_model
    from server.images.decode import FORMATS
    from server.images.workers.limits import limits_in_words

    diagnosis = Diagnosis()
    facts = diagnosis.facts
    missing = missing_extras(settings)
    diagnosis.problems += missing_requirements() + missing
    facts["version"] = f"img2img-server {__version__}, Python {platform.python_version()}"
    facts["torch"] = torch.__version__
    facts["threads"] = _threads_in_words(settings)
    facts["pictures"] = ", ".join(FORMATS)
    facts["decoders"] = f"{settings.picture_places}, {limits_in_words()}"
    facts["listens"] = _address_in_words(settings)
    facts["keys"] = f"{len(settings.api_keys)}" + (", not asked for" if settings.no_auth else "")
    if misplaced := misplaced_key(settings):  # no problem where it is meant for another server
        facts["keys"] += f"; {misplaced}"
    facts["accounts"] = _accounts_in_words(settings, diagnosis.problems)
    facts["model"] = settings.model
    try:
        bundle = load_model(settings.model_spec, device=settings.device, dtype=settings.dtype)
    except ModelLoadError as error:
        if not (missing and isinstance(error.__cause__, ImportError)):  # else said already
            diagnosis.problems.append(str(error))
    else:
        facts["model"] = bundle.name
        facts |= bundle.facts
        facts["device"] = _device_in_words(bundle.device)
        facts["memory"] = _memory_in_words(bundle.weight_bytes, bundle.device)
        acceleration = choose_acceleration(settings.acceleration, bundle.device)
        facts["acceleration"] = acceleration.in_words
        facts["forwards"] = describe_forwards(bundle, acceleration)
        diagnosis.problems.extend(_sampler_problems(bundle))
        facts["attention"] = attention_backends(bundle.head_sizes, bundle.device, bundle.dtype)
        try:
            bundle.clip = clip = choose_clip(bundle, settings.clip_model)
            facts["guidance"] = "none" if clip is None else f"by CLIP, {clip.name}"
            checker = safety_model(bundle, settings)
            facts["safety"] = _safety_in_words(checker, bundle, settings)
            plan = memory_policy(bundle, settings, checker=checker)
            facts["plan"] = plan.in_words(bundle.downscale)
        except ModelLoadError as error:
            diagnosis.problems.append(str(error))
    try:
        phrases = DenyList.read(settings.prompt_deny_list).phrases
        facts["deny list"] = f"{len(phrases)} phrases"
    except DenyListError as error:
        diagnosis.problems.append(str(error))
    if notice := demo_notice(settings.model):
        facts["note"] = notice
    if renamed := renamed_variables():  # which still work, or are not needed
        facts["renamed"] = "; ".join(renamed)
    if problem := settings.exposure_problem():
        diagnosis.problems.append(problem)
    diagnosis.problems.extend(unknown_variables())
    return diagnosis


def _address_in_words(settings: Settings) -> str:
    """Return where the server would listen, and whether it could now."""
    address = f"{settings.host}:{settings.port}"
    try:
        close(listen(settings.host, settings.port))
    except CannotListen as error:
        return f"{address}, but not now: {error}, unless it is this server that runs there"
    return address


def _threads_in_words(settings: Settings) -> str:
    """Set torch's threads as the server would, and return them with what bounds them."""
    threads, usable = set_tensor_threads(settings.threads), usable_cpus()
    asked = " (IMG2IMG_THREADS)" if settings.threads else ""
    return f"{threads}{asked}; {usable.count} of {os.cpu_count()} CPUs, by {usable.reason}"


def _sampler_problems(bundle: ModelBundle) -> list[str]:
    """Return a line for each sampler that cannot run on this model here."""
    from models.noise_schedule import NoiseSchedule
    from pipelines.request import Sampler
    from pipelines.samplers.programs import make_program

    problems = []
    for sampler in Sampler:
        try:
            make_program(sampler, 30, 0.35, NoiseSchedule.from_config(bundle.scheduler_config))
        except Exception as error:  # of whatever library a scheduler needs
            advice = "install this project's requirements anew"
            problems.append(f"sampler {sampler} fails: {error}; {advice}")
    return problems


def _accounts_in_words(settings: Settings, problems: list[str]) -> str:
    if not settings.has_database:
        return "none"
    import asyncio

    from sqlalchemy.exc import ProgrammingError

    from server.accounts.api_keys import KeyStore
    from server.accounts.db import Database, first_line, require_known
    from server.errors import DatabaseAway, DatabaseUnusable

    async def look() -> str:
        database = Database(settings.accounts_url)
        try:
            await require_known(database, settings.data_dir)
            if database.is_sqlite and not Path(str(database.url.database)).exists():
                return f"{database.name}, made at the first start"
            return f"{len(await KeyStore(database).list())} keys in {database.name}"
        except ProgrammingError:
            return f"{database.name}, without tables: they are made at the first start"
        except DatabaseAway as error:
            problems.append(
                f"the database cannot be reached: {first_line(error.__cause__)}; start it, or "
                "change IMG2IMG_DATABASE_URL"
            )
            return database.name
        finally:
            await database.close()

    try:
        return asyncio.run(look())
    except DatabaseUnusable as error:
        problems.append(str(error))
        return "unusable"


def _safety_in_words(checker: SafetyModel | None, bundle: ModelBundle, settings: Settings) -> str:
    from models.auxiliary.choose import shipped_checker

    if checker is None:
        shipped = shipped_checker(bundle.path) is not None
        return f"off (the model ships {'a' if shipped else 'no'} checker)"
    return f"{settings.safety} above {settings.safety_threshold:g}, by {checker.name}"


def _device_in_words(device: object) -> str:
    import torch

    chosen = torch.device(str(device))
    if chosen.type != "cuda":
        return str(chosen)
    properties = torch.cuda.get_device_properties(chosen)
    return f"{chosen} ({properties.name}, {properties.total_memory / 2**30:.0f} GiB)"


def _memory_in_words(weight_bytes: int, device: object) -> str:
    """Return what the weights take, and what is left beside them, in words."""
    import psutil
    import torch

    chosen = torch.device(str(device))
    if chosen.type == "cuda":
        free, total = torch.cuda.mem_get_info(chosen)
    else:
        machine = psutil.virtual_memory()
        free, total = machine.available, machine.total
    weights, left, whole = (f"{n / 2**30:.2f}" for n in (weight_bytes, free, total))
    return f"weights {weights} GiB, then {left} GiB free of {whole} GiB"
