"""Every block of the documentation runs, or is at least understood, and every command in it exists.

The Python blocks of a page run in order and share one namespace, in a process of its own; ``sql``
blocks run in between, on the database ``shop``.  An ``output`` block holds what the block before it
prints; ``...`` in it stands for anything.  A block that calls ``run()`` is ended with Ctrl-C.  A
block that names a file is that file, which the others can import: see test_docs_files.py.  The
first program of the README is also run alone, with the command that follows it, and the tutorial
in a browser.  Connection strings are used as the reader sees them: what they leave out, the port
and the password, libpq takes from PGPORT and PGPASSWORD.

``python -m tests.test_docs docs/quickstart.md FOLDER`` runs one page on the server of your own PG*
variables, which needs a role ``app`` that owns two databases, ``shop`` and ``warehouse``; the files
of the page go into the folder.
"""

from __future__ import annotations

import ast
import configparser
import contextlib
import doctest
import importlib.util
import io
import itertools
import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest
import yaml

import pgsignals
from pgsignals import cli, connect, testing
from tests.support.browser import Browser
from tests.support.pages import DOCS, PAGES, ROOT, Block, blocks, name_of, write_files
from tests.support.tools import tool
from tests.support.waiting import PATIENCE, wait_until

_spec = importlib.util.spec_from_file_location("absolute_links", DOCS / "absolute_links.py")
assert _spec is not None
assert _spec.loader is not None
absolute_links = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(absolute_links)

SVG = "{http://www.w3.org/2000/svg}"
PAGE = ("-m", "tests.test_docs")
RUN = {"python", "sql"}
LANGUAGES = {*RUN, "output", "sh", "html", "ini", "text", "yaml", "{eval-rst}"}
RUNS = re.compile(r"(?<!asyncio)\.run\(")
#: What a line of the log is shown with for what is filled in.
HOLES = re.compile(r"…|<reason>|\b[NMS]\b|\b\d+\b")
LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)|src=\"([^\"]+)\"")


each_file = pytest.mark.parametrize("path", PAGES, ids=name_of)
each_file_that_runs = pytest.mark.parametrize(
    "path",
    [path for path in PAGES if any(block.language in RUN for block in blocks(path))],
    ids=name_of,
)


# -- running the blocks of a file ------------------------------------------------------------------


def run_blocks(path: Path, folder: Path) -> None:
    """Run the blocks of a page beside its files, and compare what each prints."""
    logging.getLogger("pgsignals").addHandler(logging.NullHandler())  # blocks lose sessions
    namespace: dict[str, object] = {"__name__": "__main__"}
    sys.path.insert(0, str(folder))
    write_files(path, folder)
    for block, after in itertools.pairwise([*blocks(path), Block("", "", 0)]):
        if block.language == "sql":
            with connect("postgresql://app@localhost/shop") as db:
                db.execute(block.text.encode())
        if block.language != "python" or block.file:
            continue
        # Blank lines before it make a traceback name, and show, the lines of the file.
        code = compile("\n" * block.line + block.text, str(path), "exec", dont_inherit=True)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), ctrl_c(wanted=bool(RUNS.search(block.text))):
            exec(code, namespace)
        if after.language != "sh":  # else it depends on that command
            expected = after.text if after.language == "output" else ""
            compare(f"{path}:{block.line}", expected, printed.getvalue())


def compare(where: str, expected: str, printed: str) -> None:
    """Complain where *printed* is not what an output block says."""
    if not doctest.OutputChecker().check_output(expected, printed, doctest.ELLIPSIS):
        raise AssertionError(f"{where} prints:\n{printed}not:\n{expected}")


@contextlib.contextmanager
def ctrl_c(*, wanted: bool) -> Iterator[None]:
    """Press Ctrl-C as soon as the program in this block handles it."""
    default = signal.getsignal(signal.SIGINT)
    left = threading.Event()

    def press() -> None:
        while not left.is_set():
            if signal.getsignal(signal.SIGINT) is not default:
                os.kill(os.getpid(), signal.SIGINT)
                return
            time.sleep(0.01)

    finger = threading.Thread(target=press)
    if wanted:
        finger.start()
    try:
        yield
    finally:
        left.set()
        if wanted:
            finger.join()


def run(environment: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the project's directory."""
    return subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


# -- tests -----------------------------------------------------------------------------------------


@each_file_that_runs
@pytest.mark.usefixtures("dsn")  # so that a session left behind is noticed
def test_blocks_run(path: Path, environment: dict[str, str], tmp_path: Path) -> None:
    warnings = ["-W", "error", "-W", "ignore::ResourceWarning"]  # the interpreter's end closes, too
    result = run(environment, sys.executable, *warnings, *PAGE, str(path), str(tmp_path))

    assert result.stderr == ""
    assert result.returncode == 0


@pytest.mark.usefixtures("dsn")
def test_first_program_of_the_readme_receives_what_psql_sends(
    environment: dict[str, str], tmp_path: Path
) -> None:
    program, command, output = blocks(ROOT / "README.md")[:3]
    assert (program.language, command.language, output.language) == ("python", "sh", "output")
    (tmp_path / "orders.py").write_text(program.text, "utf-8")
    expected = output.text.splitlines(keepends=True)

    with subprocess.Popen(
        [sys.executable, "orders.py"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        watch = threading.Timer(PATIENCE, process.kill)
        watch.start()
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == expected[0]
        notify_as(command.text, environment)
        assert [process.stdout.readline() for _ in expected[1:]] == expected[1:]
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() + process.stderr.read() == ""
        assert process.wait() == 0
        watch.cancel()


def notify_as(command: str, environment: dict[str, str]) -> None:
    """Run a psql command, or where there is no psql, its statement."""
    psql, dsn, option, statement = shlex.split(command)
    assert (psql, option) == ("psql", "-c")
    if shutil.which(psql, path=environment["PATH"]):
        result = run(environment, psql, dsn, option, statement)
        assert result.stderr == ""
        assert result.stdout == "NOTIFY\n"
    else:
        port, password = environment["PGPORT"], environment["PGPASSWORD"]
        with connect(dsn, port=port, password=password) as db:
            db.execute(statement.encode())


@each_file
def test_blocks_are_in_languages_that_are_checked(path: Path) -> None:
    assert path.read_text("utf-8").count("```") == 2 * len(blocks(path))
    assert {block.language for block in blocks(path)} <= LANGUAGES


@each_file
def test_commands_exist(path: Path) -> None:
    for block in blocks(path):
        if block.language == "sh":
            for command in re.split(r"\n|\|", block.text.strip()):
                check_command(shlex.split(command))


def check_command(words: list[str]) -> None:
    """Complain of a command that a reader could not run."""
    match words:
        case ["make", target]:
            targets = re.findall(
                r"^(\w+):.*##", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE
            )
            assert target in targets
        case ["pip", "install", requirement, *others]:
            settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
            project = settings["project"]
            tested = {str(line).partition(">")[0] for line in settings["dependency-groups"]["test"]}
            assert set(others) <= tested
            name, *extras = re.findall(r"[\w-]+", requirement)
            assert name == ("pgsignals" if requirement.startswith("./") else project["name"])
            assert set(extras) <= set(project["optional-dependencies"])
        case ["pgsignals", *arguments]:
            cli.parser().parse_args(arguments)
        case ["psql" | "date" | "flask" | "gunicorn" | "uvicorn" | "uwsgi" | "python", *_]:
            pass
        case _:
            pytest.fail(f"nobody knows whether this works: {shlex.join(words)}")


@each_file
def test_settings_can_be_read(path: Path) -> None:
    for block in blocks(path):
        if block.language == "ini":
            configparser.ConfigParser().read_string(block.text)
        if block.language == "yaml":
            assert yaml.safe_load(block.text)


def test_deployment_fits_its_command() -> None:
    (text,) = (
        block.text for block in blocks(DOCS / "howto" / "kubernetes.md") if block.language == "yaml"
    )
    pod = yaml.safe_load(text)["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    (port,) = container["ports"]
    program, *arguments = container["command"] + container["args"]

    assert program == "pgsignals"
    options = cli.parser().parse_args(arguments)
    assert options.metrics == ("0.0.0.0", port["containerPort"])
    assert pod["terminationGracePeriodSeconds"] > options.stop_timeout
    assert container["env"][0]["name"] == "DATABASE_URL"
    for probe, path in {
        "startupProbe": "/metrics",
        "readinessProbe": "/healthz",
        "livenessProbe": "/metrics",
    }.items():
        assert container[probe]["httpGet"] == {"path": path, "port": port["name"]}


def test_tutorial_makes_a_live_page(tmp_path: Path) -> None:
    page = blocks(DOCS / "tutorial.md")
    program = "".join(block.text for block in page if block.language == "python")
    (html,) = (block.text for block in page if block.language == "html")
    (tmp_path / "live.py").write_text(program, "utf-8")
    (tmp_path / "static").mkdir()
    (tmp_path / "static" / "live.html").write_text(html, "utf-8")

    browser = Browser()
    with (
        contextlib.closing(browser),
        subprocess.Popen(
            [sys.executable, "-m", "flask", "--app", "live", "run", "--port", "0"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        watch = threading.Timer(PATIENCE, process.kill)
        watch.start()
        assert process.stderr is not None
        address = next(filter(None, map(re.compile(r"http://\S+").search, process.stderr)))
        browser.open(address[0])
        shows(browser, "cup 20 sell one teapot 5 sell one")
        browser.evaluate("document.querySelector('#stock button').click()")
        shows(browser, "cup 19 sell one teapot 5 sell one")
        browser.evaluate("document.querySelector('p button').click()")
        shows(browser, "cup 29 sell one teapot 15 sell one")
        browser.wait_for("document.getElementById('link').innerText.startsWith('connected again')")
        browser.open("about:blank")
        process.send_signal(signal.SIGINT)
        assert "Traceback" not in process.stderr.read()
        assert process.wait() == 0
        watch.cancel()


def shows(browser: Browser, stock: str) -> None:
    """Wait until the page of the tutorial has these words in its table."""
    wait_until(lambda: " ".join(browser.text("#stock").split()) == stock, why=stock)


@pytest.mark.parametrize("module", [pgsignals, testing])
def test_every_public_name_is_in_the_reference(module: ModuleType) -> None:
    reference = (DOCS / "api.md").read_text("utf-8")
    documented = set(re.findall(r"^\.\. auto\w+:: (\w+)", reference, re.MULTILINE))

    assert set(module.__all__) <= documented


@each_file
def test_tests_that_a_page_names_exist(path: Path) -> None:
    for file, name in re.findall(r"(test_\w+\.py)::(\w+)", path.read_text("utf-8")):
        assert f"def {name}(" in (ROOT / "tests" / file).read_text("utf-8"), f"{file}::{name}"


def test_diagram_names_modules_that_exist() -> None:
    texts = ElementTree.parse(DOCS / "architecture.svg").iter(f"{SVG}text")
    files = re.findall(r"[\w/]+\.py", " ".join(element.text or "" for element in texts))

    assert "_wire/session.py" in files
    assert [file for file in files if not (ROOT / "pgsignals" / file).exists()] == []


@pytest.mark.parametrize("page", ["architecture.md", "contributing-where.md"])
def test_pages_about_the_code_name_files_that_exist_and_those_that_do_not(page: str) -> None:
    """A file that has come is no longer called new."""
    text = (DOCS / page).read_text("utf-8")
    found = set(re.findall(r"`([\w/]+(?:\.py|/))`( \(new\))?", text))

    assert len(found) > 10
    for name, new in found:
        known = [ROOT / "pgsignals" / name, ROOT / name]
        known += [] if "/" in name else (ROOT / "pgsignals").rglob(name)
        exists = any(path.exists() for path in known)
        assert exists != bool(new), name


@pytest.mark.parametrize("page", ["architecture.md", "contributing-where.md"])
def test_pages_about_the_code_name_members_that_exist(page: str) -> None:
    sources = [path.read_text("utf-8") for path in (ROOT / "pgsignals").rglob("*.py")]
    text = (DOCS / page).read_text("utf-8")
    names = re.findall(r"`([A-Z]\w*[a-z]\w*)\.(\w+)(?:\([\w, ]*\))?`", text)

    assert len(names) > 5
    for owner, member in names:
        assert any(
            re.search(rf"^class {owner}\b", source, re.MULTILINE)
            and re.search(rf"\b{member}\b", source)
            for source in sources
        ), f"{owner}.{member}"


def test_diagram_can_be_read_on_a_phone() -> None:
    picture = ElementTree.parse(DOCS / "architecture.svg").getroot()
    style = "".join(element.text or "" for element in picture.iter(f"{SVG}style"))
    sizes = [float(size) for size in re.findall(r"font-size: ([\d.]+)px", style)]

    assert sizes
    shrunk = min(1, 342 / float(picture.attrib["width"]))  # what furo leaves of 390 pixels
    assert min(sizes) * shrunk >= 10.5


@each_file
def test_links_lead_somewhere(path: Path) -> None:
    for link in LINK.finditer(path.read_text("utf-8")):
        target = link[1] or link[2]
        if source := absolute_links.source():
            target = re.sub(rf"^{re.escape(source)}/(blob|raw)/HEAD/", "", target)
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        found = path.parent / name if name else path
        assert found.exists(), f"{name_of(path)} links to {target}"
        assert not anchor or anchor in anchors(found), f"{name_of(path)} links to {target}"


def test_readme_can_be_read_where_its_files_are_not() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    source = absolute_links.source()
    absolute = absolute_links.absolute(readme, source or "https://example.org/repository")
    targets = [link[1] or link[2] for link in LINK.finditer(absolute)]

    assert len(targets) > 20
    assert [target for target in targets if not target.startswith("https://")] == []
    if source:
        assert readme == absolute, "run docs/absolute_links.py"


def anchors(path: Path) -> set[str]:
    """What a link can lead to in a file: its headings, as GitHub spells them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_picture_can_be_made_again(tmp_path: Path) -> None:
    tool("tmux")
    picture = tmp_path / "demo.svg"
    command = [sys.executable, "docs/record.py", "--seconds", "1", "--output", str(picture)]
    result = run(dict(os.environ), *command)

    assert result.stdout + result.stderr == ""
    assert result.returncode == 0
    for line in (0, -1):  # from the title to the end
        assert lines_of(picture)[line] == lines_of(ROOT / "docs" / "demo.svg")[line]


def lines_of(picture: Path) -> list[str]:
    """The first words of the lines of a picture."""
    texts = [element.text or "" for element in ElementTree.parse(picture).iter(f"{SVG}text")]
    return [text.partition(":")[0] for text in texts if ":" in text]


def explained_lines() -> dict[str, re.Pattern[str]]:
    """The lines of the log that the page about production explains, as patterns."""
    page = (DOCS / "operations.md").read_text("utf-8")
    table = page.partition("## What the log says")[2].partition("\n## ")[0]
    rows = [line.split(" | ")[1] for line in table.splitlines() if line.startswith("| `")]
    lines = [line for row in rows for line in re.findall(r"`([^`]+)`", row)]
    return {
        line: re.compile(".*".join(map(re.escape, HOLES.split(line))))
        for line in lines
        if " " in line
    }


def log_templates() -> Iterator[str]:
    """What the engine logs, with X for what is filled in."""
    for path in sorted((ROOT / "pgsignals").rglob("*.py")):
        if path.relative_to(ROOT / "pgsignals").parts[0] in ("cli", "demo", "embedded", "testing"):
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id="logger"))):
                    texts = node.args
                case ast.Assign(targets=[ast.Name(id="message")]):
                    texts = [node.value]
                case _:
                    continue
            for text in texts:
                if isinstance(text, ast.Constant) and isinstance(text.value, str):
                    template = re.sub(r"%(\.\d+)?[a-z]", "X", text.value).replace("%%", "%")
                    if re.search("[a-z]{2}", template):
                        yield template


def test_every_line_of_the_log_is_explained() -> None:
    patterns = explained_lines().values()
    templates = set(log_templates())

    assert len(templates) > 15
    unexplained = [
        template
        for template in templates
        if not any(pattern.fullmatch(template) for pattern in patterns)
    ]
    assert unexplained == []


def test_every_line_that_is_explained_is_logged() -> None:
    source = "".join(
        node.value
        for path in (ROOT / "pgsignals").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ).replace("%%", "%")
    for line in explained_lines():
        for part in re.split(rf"{HOLES.pattern}|: |; |[()]", line):
            assert part.strip() in source, line


def test_every_extra_and_error_is_documented() -> None:
    quickstart = (ROOT / "docs" / "quickstart.md").read_text("utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

    for extra in project["optional-dependencies"]:
        assert f"| `{extra}` |" in quickstart
    for name in pgsignals.__all__:
        assert not name.endswith("Error") or f"{name}`" in quickstart


if __name__ == "__main__":
    run_blocks(Path(sys.argv[1]).resolve(), Path(sys.argv[2]))
