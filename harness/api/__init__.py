"""The Python door: run suites, read boards as data frames, fit one method, load what a finished trial learned."""

from harness.api.finished import FinishedTrial as FinishedTrial
from harness.api.finished import load_trial as load_trial
from harness.api.fitting import AdaptedPeople as AdaptedPeople
from harness.api.fitting import FittedMethod as FittedMethod
from harness.api.fitting import fit as fit
from harness.api.running import SuiteRun as SuiteRun
from harness.api.running import plan_suite as plan_suite
from harness.api.running import run_suite as run_suite
from harness.api.running import run_trials as run_trials
