"""The environment decides nothing under PAM: neither what a user put before the items of pam_exec,
nor any variable that the interpreter, a library or shiv would read."""

from __future__ import annotations

import ast
import io
import os
import re
import shutil
import subprocess
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Union

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tattle.detail import detail
from tattle.hook import moment
from tattle.pam import trusted_block
from tattle.session import parse

from standins.instance import STRACE_LOG, TATTLE, Instance, Text
from support import SYSTEM_PYTHON, eventually, need, need_root
from tattle import TattleError

FUZZED_BLOCKS = 10_000
FUZZED_RUNS = 100

# Who reads which variables: file:function → names, `*` for any rest of a name. A function that gets
# its names from elsewhere is listed with those it can ask for.
ARCHIVE = {
    "__main__.py:main": ("PAM_SERVICE", "LC_CTYPE"),
    "tattle/__main__.py:main": ("PAM_SERVICE", "LC_CTYPE"),
    "tattle/check.py:report": ("NO_COLOR",),  # from a shell
    "tattle/cli.py:smoke_test": ("PAM_*", "RES_OPTIONS"),  # from a shell
    "tattle/events.py:refuse_foreign_files": (
        *("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_CA_BUNDLE", "AWS_DATA_PATH"),
        *("BOTO_CONFIG", "HOME"),
    ),
    "tattle/events.py:aws_session": (),
    "tattle/hook.py:accept": (),  # the block, as bytes
    "tattle/hook.py:prepare": (),  # empties it
    "tattle/pam.py:trusted_block": (),
    "tattle/process.py:leave_login": ("RES_OPTIONS",),  # sets it
    "tattle/process.py:start_anew": (),  # the block, as bytes
    "_bootstrap/__init__.py:run": ("SHIV_MODULE", "SHIV_ENTRY_POINT", "SHIV_CONSOLE_SCRIPT"),
    "_bootstrap/__init__.py:cache_path": ("SHIV_ROOT", "HOME"),
    "_bootstrap/__init__.py:extend_python_path": ("PYTHONPATH",),
    "_bootstrap/__init__.py:bootstrap": ("PYTHONPATH",),
    "_bootstrap/environment.py:Environment": ("SHIV_*",),
    "_bootstrap/environment.py:Environment.entry_point": ("SHIV_ENTRY_POINT", "SHIV_MODULE"),
    "_bootstrap/environment.py:Environment.script": ("SHIV_CONSOLE_SCRIPT",),
    "_bootstrap/environment.py:Environment.interpreter": ("SHIV_INTERPRETER",),
    "_bootstrap/environment.py:Environment.root": ("SHIV_ROOT",),
    "_bootstrap/environment.py:Environment.force_extract": ("SHIV_FORCE_EXTRACT",),
    "_bootstrap/environment.py:Environment.compile_pyc": ("SHIV_COMPILE_PYC",),
    "_bootstrap/environment.py:Environment.compile_workers": ("SHIV_COMPILE_WORKERS",),
    "_bootstrap/environment.py:Environment.extend_pythonpath": ("SHIV_EXTEND_PYTHONPATH",),
    "_bootstrap/environment.py:Environment.prepend_pythonpath": ("SHIV_PREPEND_PYTHONPATH",),
    "botocore/compat.py:": ("BOTO_DISABLE_CRT",),
    "botocore/configloader.py:raw_config_parse": ("HOME", "USERPROFILE"),  # and those in the path
    "botocore/configprovider.py:": (  # BOTOCORE_DEFAUT_SESSION_VARIABLES and those for S3
        *("AWS_ACCOUNT_ID_ENDPOINT_MODE", "AWS_AUTH_SCHEME_PREFERENCE", "AWS_CA_BUNDLE"),
        *("AWS_CONFIG_FILE", "AWS_CSM_CLIENT_ID", "AWS_CSM_ENABLED", "AWS_CSM_HOST"),
        *("AWS_CSM_PORT", "AWS_DATA_PATH", "AWS_DEFAULTS_MODE", "AWS_DEFAULT_PROFILE"),
        *("AWS_DEFAULT_REGION", "AWS_DISABLE_HOST_PREFIX_INJECTION"),
        *("AWS_DISABLE_REQUEST_COMPRESSION", "AWS_EC2_METADATA_SERVICE_ENDPOINT"),
        *("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", "AWS_EC2_METADATA_V1_DISABLED"),
        *("AWS_ENDPOINT_DISCOVERY_ENABLED", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS"),
        *("AWS_IMDS_USE_IPV6", "AWS_MAX_ATTEMPTS", "AWS_METADATA_SERVICE_NUM_ATTEMPTS"),
        *("AWS_METADATA_SERVICE_TIMEOUT", "AWS_PROFILE", "AWS_REQUEST_CHECKSUM_CALCULATION"),
        *("AWS_REQUEST_MIN_COMPRESSION_SIZE_BYTES", "AWS_RESPONSE_CHECKSUM_VALIDATION"),
        *("AWS_RETRY_MODE", "AWS_S3_DISABLE_EXPRESS_SESSION_AUTH"),
        *("AWS_S3_DISABLE_MULTIREGION_ACCESS_POINTS", "AWS_S3_USE_ARN_REGION"),
        *("AWS_S3_US_EAST_1_REGIONAL_ENDPOINT", "AWS_SDK_UA_APP_ID"),
        *("AWS_SHARED_CREDENTIALS_FILE", "AWS_SIGV4A_SIGNING_REGION_SET"),
        *("AWS_STS_REGIONAL_ENDPOINTS", "AWS_USE_DUALSTACK_ENDPOINT", "AWS_USE_FIPS_ENDPOINT"),
        "BOTOCORE_TCP_KEEPALIVE",
    ),
    "botocore/configprovider.py:ConfigChainFactory.__init__": (),  # those above
    "botocore/configprovider.py:ConfigChainFactory._get_env_providers": (),
    "botocore/configprovider.py:ConfiguredEndpointProvider.__init__": (),
    "botocore/configprovider.py:ConfiguredEndpointProvider._get_endpoint_url_environment_global": (
        "AWS_ENDPOINT_URL",
    ),
    "botocore/configprovider.py:ConfiguredEndpointProvider._get_endpoint_url_environment_service": (
        *("AWS_ENDPOINT_URL_EVENTBRIDGE", "AWS_ENDPOINT_URL_STS"),
    ),
    "botocore/configprovider.py:SmartDefaultsConfigStoreFactory.resolve_auto_mode": (
        *("AWS_EXECUTION_ENV", "AWS_DEFAULT_REGION", "AWS_REGION"),
    ),
    "botocore/credentials.py:AssumeRoleWithWebIdentityProvider._get_env_config": (
        *("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN", "AWS_ROLE_SESSION_NAME"),
    ),
    "botocore/credentials.py:BotoProvider.__init__": (),
    "botocore/credentials.py:BotoProvider.load": ("BOTO_CONFIG",),
    "botocore/credentials.py:ContainerProvider.__init__": (),
    "botocore/credentials.py:ContainerProvider.load": (),
    "botocore/credentials.py:ContainerProvider._provided_relative_uri": (),
    "botocore/credentials.py:ContainerProvider._retrieve_or_fail": (
        *("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"),
    ),
    "botocore/credentials.py:ContainerProvider._build_headers": (
        *("AWS_CONTAINER_AUTHORIZATION_TOKEN", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"),
    ),
    "botocore/credentials.py:EnvProvider.__init__": (),
    "botocore/credentials.py:EnvProvider.load": ("AWS_ACCESS_KEY_ID",),
    "botocore/credentials.py:EnvProvider._create_credentials_fetcher": (),
    "botocore/credentials.py:EnvProvider._create_credentials_fetcher.fetch_credentials": (
        *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN"),
        *("AWS_CREDENTIAL_EXPIRATION", "AWS_ACCOUNT_ID"),
    ),
    "botocore/credentials.py:OriginalEC2Provider.__init__": (),
    "botocore/credentials.py:OriginalEC2Provider.load": ("AWS_CREDENTIAL_FILE",),
    "botocore/credentials.py:SSOProvider": ("HOME",),
    "botocore/endpoint.py:EndpointCreator._get_verify_value": ("REQUESTS_CA_BUNDLE",),
    "botocore/handlers.py:add_expect_header": ("BOTO_EXPERIMENTAL__NO_EMPTY_CONTINUE",),
    "botocore/handlers.py:add_recursion_detection_header": (
        *("AWS_LAMBDA_FUNCTION_NAME", "_X_AMZN_TRACE_ID"),
    ),
    "botocore/httpsession.py:URLLib3Session.send": ("BOTO_EXPERIMENTAL__ADD_PROXY_HOST_HEADER",),
    "botocore/httpsession.py:create_urllib3_context": ("SSLKEYLOGFILE",),
    "botocore/loaders.py:Loader": ("HOME",),
    "botocore/loaders.py:Loader.is_builtin_path": ("HOME",),
    "botocore/loaders.py:create_loader": ("HOME",),
    "botocore/plugin.py:get_botocore_plugins": ("BOTOCORE_EXPERIMENTAL__PLUGINS",),
    "botocore/session.py:Session.user_agent": ("AWS_EXECUTION_ENV",),
    "botocore/tokens.py:SSOTokenProvider": ("HOME",),
    "botocore/tokens.py:ScopedEnvTokenProvider.__init__": (),
    "botocore/tokens.py:ScopedEnvTokenProvider.load_token": (),
    "botocore/useragent.py:UserAgentString.from_environment": ("AWS_EXECUTION_ENV",),
    "botocore/utils.py:IMDSFetcher.__init__": ("AWS_EC2_METADATA_DISABLED",),
    "botocore/utils.py:IMDSRegionProvider.__init__": (),
    "botocore/utils.py:IMDSRegionProvider._create_fetcher": (),
    "botocore/utils.py:JSONFileCache": ("HOME",),
    "botocore/utils.py:get_login_token_cache_directory": ("AWS_LOGIN_CACHE_DIRECTORY", "HOME"),
    "botocore/utils.py:get_token_from_environment": (
        *("AWS_BEARER_TOKEN_EVENTBRIDGE", "AWS_BEARER_TOKEN_EVENTS", "AWS_BEARER_TOKEN_STS"),
    ),
    "dateutil/tz/tz.py:__get_gettz.GettzFunc.nocache": ("TZ",),
    "urllib3/connection.py:HTTPSConnection.__init__": ("HOME",),
    "urllib3/connection.py:HTTPSConnection.set_cert": ("HOME",),
    "urllib3/util/ssl_.py:create_urllib3_context": ("SSLKEYLOGFILE",),
}

# Modules of the standard library that a deliverer or the command line loads, Python 3.9 to 3.14.
STANDARD_LIBRARY = {
    "_collections_abc.py:": (),
    "_colorize.py:can_colorize": (*("PYTHON_COLORS", "NO_COLOR", "FORCE_COLOR", "TERM"),),
    "_colorize.py:can_colorize._safe_getenv": (),
    "getpass.py:getuser": ("LOGNAME", "USER", "LNAME", "USERNAME"),
    "gettext.py:find": ("LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG"),
    "importlib/_bootstrap_external.py:_make_relax_case._relax_case": ("PYTHONCASEOK",),
    "locale.py:getdefaultlocale": ("LC_ALL", "LC_CTYPE", "LANG", "LANGUAGE"),
    "locale.py:_getdefaultlocale": ("LC_ALL", "LC_CTYPE", "LANG", "LANGUAGE"),
    "ntpath.py:expanduser": ("USERPROFILE", "HOMEPATH", "HOMEDRIVE", "USERNAME"),
    "ntpath.py:expandvars": (),
    "ntpath.py:_expandvars_repl": (),
    "ntpath.py:expandvars.repl": (),
    "os.py:getenv": (),
    "os.py:getenvb": (),
    "os.py:get_exec_path": ("PATH",),
    "os.py:_execvpe": (),
    "os.py:execvp": (),
    "os.py:_createenviron": (),
    "os.py:": (),
    "pathlib.py:Path.expanduser": ("HOME",),
    "pathlib.py:Path.home": ("HOME",),
    "pathlib.py:_PosixFlavour.gethomedir": ("HOME",),
    "pathlib.py:_WindowsFlavour.gethomedir": ("USERPROFILE", "HOMEPATH", "HOMEDRIVE", "USERNAME"),
    "pathlib/__init__.py:Path.expanduser": ("HOME",),
    "pathlib/__init__.py:Path.home": ("HOME",),
    "pathlib/_local.py:Path.expanduser": ("HOME",),
    "pathlib/_local.py:Path.home": ("HOME",),
    "platform.py:_Processor.get_win32": ("PROCESSOR_IDENTIFIER",),
    "platform.py:_get_machine_win32": ("PROCESSOR_ARCHITEW6432", "PROCESSOR_ARCHITECTURE"),
    "platform.py:_syscmd_file": ("LC_ALL",),  # sets it
    "platform.py:uname": ("PROCESSOR_ARCHITEW6432", "PROCESSOR_ARCHITECTURE"),
    "posixpath.py:expanduser": ("HOME",),
    "posixpath.py:expandvars": (),  # any that a path of the configuration's names
    "posixpath.py:expandvars.repl": (),
    "posixpath.py:_expandvars_repl": (),
    "py_compile.py:_get_default_invalidation_mode": ("SOURCE_DATE_EPOCH",),
    "shutil.py:get_terminal_size": ("COLUMNS", "LINES"),
    "shutil.py:which": ("PATH", "PATHEXT"),
    "site.py:_getuserbase": ("PYTHONUSERBASE", "APPDATA"),
    "site.py:_getuserbase.joinuser": ("HOME",),
    "site.py:enablerlcompleter.register_readline": ("HOME",),
    "site.py:gethistoryfile": ("PYTHON_HISTORY",),
    "site.py:register_readline": ("PYTHON_BASIC_REPL", "HOME"),
    "site.py:venv": ("__PYVENV_LAUNCHER__",),
    "ssl.py:_create_unverified_context": ("SSLKEYLOGFILE",),
    "ssl.py:create_default_context": ("SSLKEYLOGFILE",),
    "ssl.py:get_default_verify_paths": ("SSL_CERT_FILE", "SSL_CERT_DIR"),
    "subprocess.py:Popen._execute_child": ("PATH", "COMSPEC"),
    "subprocess.py:Popen._posix_spawn": (),  # hands all of it on
    "sysconfig.py:_getuserbase": ("PYTHONUSERBASE", "APPDATA"),
    "sysconfig/__init__.py:_getuserbase": ("PYTHONUSERBASE", "APPDATA"),
    "tempfile.py:_candidate_tempdir_list": ("TMPDIR", "TEMP", "TMP"),
    "traceback.py:": (),
    "urllib/request.py:getproxies_environment": (
        *("http_proxy", "https_proxy", "all_proxy", "no_proxy", "REQUEST_METHOD"),
        *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "*_proxy"),
    ),
    "uuid.py:_get_command_stdout": ("PATH", "LC_ALL"),
}

# What is written in C, and can't be searched here: what asks getenv(3) is found out by asking.
IN_C = {
    "CPython: Python/initconfig.c, preconfig.c, which -I has ignore them": (
        *("PYTHONHOME", "PYTHONPATH", "PYTHONSTARTUP", "PYTHONOPTIMIZE", "PYTHONDEBUG"),
        *("PYTHONINSPECT", "PYTHONUNBUFFERED", "PYTHONVERBOSE", "PYTHONCASEOK"),
        *("PYTHONDONTWRITEBYTECODE", "PYTHONHASHSEED", "PYTHONIOENCODING", "PYTHONNOUSERSITE"),
        *("PYTHONUSERBASE", "PYTHONWARNINGS", "PYTHONFAULTHANDLER"),
        *("PYTHONTRACEMALLOC", "PYTHONASYNCIODEBUG", "PYTHONMALLOC", "PYTHONMALLOCSTATS"),
        *("PYTHONLEGACYWINDOWSFSENCODING", "PYTHONLEGACYWINDOWSSTDIO", "PYTHONCOERCECLOCALE"),
        *("PYTHONDEVMODE", "PYTHONUTF8", "PYTHONWARNDEFAULTENCODING", "PYTHONPROFILEIMPORTTIME"),
        *("PYTHONNODEBUGRANGES", "PYTHONPYCACHEPREFIX", "PYTHONSAFEPATH", "PYTHONPLATLIBDIR"),
        *("PYTHONINTMAXSTRDIGITS", "PYTHONBREAKPOINT", "PYTHONPERFSUPPORT", "PYTHONDUMPREFS"),
        *("PYTHONDUMPREFSFILE", "PYTHONTHREADDEBUG", "PYTHON_COLORS", "PYTHON_GIL", "PYTHON_JIT"),
        *("PYTHON_CPU_COUNT", "PYTHON_FROZEN_MODULES", "PYTHON_HISTORY", "PYTHON_BASIC_REPL"),
        *("PYTHON_PERF_JIT_SUPPORT", "PYTHON_PRESITE", "PYTHON_THREAD_INHERIT_CONTEXT"),
        *("PYTHON_CONTEXT_AWARE_WARNINGS", "PYTHON_DISABLE_REMOTE_DEBUG", "PYTHON_TLBC"),
        *("PYTHON_LLTRACE", "PYTHON_UOPS_OPTIMIZE", "PATH"),
    ),
    "OpenSSL: crypto/conf, provider, engine, x509, rand, ct; ssl; cpuid": (
        *("OPENSSL_CONF", "OPENSSL_CONF_INCLUDE", "OPENSSL_MODULES", "OPENSSL_ENGINES"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "CTLOG_FILE", "RANDFILE", "HOME", "OPENSSL_ia32cap"),
        *("OPENSSL_armcap", "OPENSSL_MALLOC_FAILURES", "OPENSSL_TRACE", "SSLKEYLOGFILE", "QLOGDIR"),
        *("OPENSSL_s390xcap", "OPENSSL_ppccap", "OPENSSL_riscvcap", "OPENSSL_WIN32_UTF8"),
        *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
        *("OPENSSL_FORCE_FIPS_MODE", "OSSL_QFILTER", "LEGACY_GOST_PKCS12"),
    ),
    "expat: lib/xmlparse.c": (
        *("EXPAT_ACCOUNTING_DEBUG", "EXPAT_ENTITY_DEBUG", "EXPAT_ENTROPY_DEBUG"),
        *("EXPAT_MALLOC_DEBUG",),
    ),
    "glibc, at run time: resolv/res_init.c, res_hconf.c; intl; argp; gmon; time/getdate.c": (
        *("RES_OPTIONS", "LOCALDOMAIN", "HOSTALIASES", "RESOLV_HOST_CONF", "RESOLV_MULTI"),
        *("RESOLV_ADD_TRIM_DOMAINS", "RESOLV_OVERRIDE_TRIM_DOMAINS", "RESOLV_REORDER"),
        *("GETCONF_DIR", "NLSPATH", "OUTPUT_CHARSET", "TMPDIR", "MSGVERB", "SEV_LEVEL", "DATEMSK"),
        *("POSIXLY_CORRECT", "ARGP_HELP_FMT", "GMON_OUT_PREFIX", "NIS_PATH", "NIS_GROUP"),
        *("NIS_DEFAULTS", "HESIOD_CONFIG", "HES_DOMAIN", "I18NPATH", "IFS"),
    ),
}

# Read before the program's first line, which no program can help: files are opened for these. What
# can be done about them is tested with real logins, in test_attacks.py.
BEFORE_THE_PROGRAM = {
    "glibc's loader, ld.so(8): elf/rtld.c, dl-support.c, dl-tunables.c": ("LD_*", "GLIBC_TUNABLES"),
    "glibc: malloc": ("MALLOC_*",),
    "glibc: locale/setlocale.c, findlocale.c; iconv/gconv_conf.c, for CPython's setlocale()": (
        *("LANG", "LANGUAGE", "LC_*", "LOCPATH", "GCONV_PATH"),
    ),
    # From 3.11 on, even with -I: a file of the value's name with ._pth says where all modules are.
    "CPython: Modules/getpath.py": ("PYTHONEXECUTABLE", "__PYVENV_LAUNCHER__"),
    "glibc: time/tzset.c, tzfile.c, for the import of CPython's time": ("TZ", "TZDIR"),
}

# Strings in the archive that look like a variable's name and are none.
NO_VARIABLES = {"HTTP_REQUEST", "HTTP_RESPONSE", "PATH"}
LOOKS_LIKE_A_VARIABLE = re.compile(
    r"(AWS|BOTO|BOTOCORE|SHIV|SSL|REQUESTS|CURL|OPENSSL|PYTHON|HTTPS?|NO|ALL)_[A-Z0-9_]+"
    r"|SSLKEYLOGFILE|PYTHON[A-Z]+|TZ|TZDIR|HOME|PATH|TMPDIR|_X_AMZN_\w+"
)

# What to set a variable to, to do most harm; "/nowhere" otherwise.
HOSTILE = {
    **dict.fromkeys(
        [
            *("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_EVENTBRIDGE", "AWS_ENDPOINT_URL_STS"),
            *("AWS_EC2_METADATA_SERVICE_ENDPOINT", "AWS_CONTAINER_CREDENTIALS_FULL_URI"),
            *("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"),
        ],
        "http://127.0.0.1:9",
    ),
    **dict.fromkeys(
        [
            *("AWS_EC2_METADATA_DISABLED", "AWS_IMDS_USE_IPV6", "AWS_USE_FIPS_ENDPOINT"),
            *("AWS_USE_DUALSTACK_ENDPOINT", "AWS_CSM_ENABLED", "SHIV_FORCE_EXTRACT"),
            *("SHIV_INTERPRETER", "SHIV_EXTEND_PYTHONPATH", "SHIV_COMPILE_PYC"),
            *("AWS_ENDPOINT_DISCOVERY_ENABLED", "AWS_DISABLE_HOST_PREFIX_INJECTION"),
        ],
        "true",
    ),
    **dict.fromkeys(
        ["AWS_REGION", "AWS_DEFAULT_REGION", "AWS_SIGV4A_SIGNING_REGION_SET"], "eu-west-1"
    ),
    "AWS_EC2_METADATA_V1_DISABLED": "false",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE": "ipv6",
    "AWS_EXECUTION_ENV": "AWS_Lambda_python3.13",
    "AWS_MAX_ATTEMPTS": "0",
    "AWS_METADATA_SERVICE_NUM_ATTEMPTS": "0",
    "AWS_METADATA_SERVICE_TIMEOUT": "0",
    "no_proxy": "*",
    "NO_PROXY": "*",
    "PAM_SERVICE": "sudo",
    "PYTHONINSPECT": "1",
    "PYTHONDEVMODE": "1",
    "PYTHONWARNINGS": "error",
    "RES_OPTIONS": "timeout:30 attempts:9",
    "SHIV_COMPILE_WORKERS": "-1",
    "TZ": "Asia/Tokyo",
    "LANG": "tr_TR.ISO-8859-9",
    "LC_*": "ja_JP.EUC-JP",
}
# A name for each prefix.
EXAMPLES = {
    "*_proxy": ("ftp_proxy",),
    "LC_*": ("LC_ALL", "LC_CTYPE", "LC_NUMERIC", "LC_TIME"),
    "LD_*": ("LD_LIBRARY_PATH", "LD_BIND_NOW", "LD_ORIGIN_PATH"),  # those that let it run
    "MALLOC_*": ("MALLOC_ARENA_MAX", "MALLOC_PERTURB_", "MALLOC_CHECK_"),
    "PAM_*": ("PAM_USER", "PAM_RHOST", "PAM_TYPE", "PAM_TTY", "PAM_RUSER"),
    "SHIV_*": (),
}


def names_in(table: Mapping[str, Sequence[str]]) -> set[str]:
    return {name for names in table.values() for name in names}


def hostile(table: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Every variable of a table with a value that would do harm."""
    return {
        name: HOSTILE.get(name, HOSTILE.get(entry, "/nowhere"))
        for entry in sorted(names_in(table))
        for name in EXAMPLES.get(entry, (entry,))
    }


# The tables are complete


ENVIRON = ("environ", "environb", "_environ")


class Reads(ast.NodeVisitor):
    """Finds where a module's source has to do with environment variables."""

    GIVE_THEM = ("getenv", "getenvb", "expanduser", "expandvars")

    def __init__(self, file: str, source: str | bytes) -> None:
        self.places: dict[str, set[str]] = {}
        """file:function → the names that are written there"""
        self.strings: set[str] = set()
        """All strings that look like a variable's name."""
        self._file = file
        self._inside: list[str] = []
        self.visit(ast.parse(source))

    def _note(self, name: ast.AST | None = None) -> None:
        found = self.places.setdefault(f"{self._file}:{'.'.join(self._inside)}", set())
        if isinstance(name, ast.Constant) and isinstance(name.value, str):
            found.add(name.value)

    def _nested(self, node: ast.ClassDef | ast.FunctionDef) -> None:
        self._inside.append(node.name)
        self.generic_visit(node)
        self._inside.pop()

    visit_ClassDef = visit_FunctionDef = _nested  # noqa: N815

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if node.attr in (*ENVIRON, *self.GIVE_THEM):
            self._note()
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        of = node.func
        direct = isinstance(of, ast.Attribute) and _is_environ(of.value)
        if node.args and (direct or getattr(of, "attr", "") in ("getenv", "getenvb")):
            self._note(node.args[0])
        self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        if _is_environ(node.value):
            self._note(node.slice)
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        if any(map(_is_environ, node.comparators)):
            self._note(node.left)
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str) and LOOKS_LIKE_A_VARIABLE.fullmatch(node.value):
            self.strings.add(node.value)


def _is_environ(node: ast.AST) -> bool:
    return getattr(node, "attr", getattr(node, "id", "")) in ENVIRON


def matches(name: str, entries: Iterable[str]) -> bool:
    return any(re.fullmatch(entry.replace("*", ".*"), name) for entry in entries)


def sources(archive: bytes) -> Iterator[tuple[str, bytes]]:
    """Every module in the archive, and in archives in it."""
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        for name in file.namelist():
            if name.endswith(".zip"):
                yield from sources(file.read(name))
            elif name.endswith(".py"):
                yield name.replace("site-packages/", ""), file.read(name)


def test_every_place_in_the_archive_that_reads_the_environment_is_in_the_table(
    artifact: Path,
) -> None:
    places: dict[str, set[str]] = {}
    strings: set[str] = set()
    for name, source in sources(artifact.read_bytes()):
        reads = Reads(name, source)
        places.update(reads.places)
        strings |= reads.strings
    listed = {place for place in ARCHIVE if place in places}
    assert {*places} - listed == set(), "who reads the environment and isn't in ARCHIVE?"
    defined_elsewhere = {"botocore/configprovider.py:", "_bootstrap/environment.py:Environment"}
    assert {*ARCHIVE} - listed == defined_elsewhere, "what in ARCHIVE is out of date?"
    for place, names in places.items():
        assert names <= {*ARCHIVE[place]}, f"which variables does {place} read?"
    known = names_in(ARCHIVE) | NO_VARIABLES
    prefixes = {name for name in strings if name.endswith("_")}
    assert prefixes == {"AWS_ENDPOINT_URL_", "AWS_BEARER_TOKEN_"}
    assert {name for name in strings - prefixes if not matches(name, known)} == set()


def test_every_place_in_the_standard_library_that_reads_it_is_in_the_table(
    instance: Instance,
) -> None:
    code = f"""
import sys
sys.path.insert(0, {TATTLE!r})
from tattle.unpack import unpack
unpack()
import tattle.check, tattle.cli, tattle.config, tattle.deliver, tattle.events, tattle.hook
import tattle.process, botocore.session, os
tattle.events.Publisher(tattle.config.Config(), 1, 1.0)
library = os.path.dirname(os.__file__) + "/"
for module in list(sys.modules.values()):
    file = getattr(module, "__file__", None) or ""
    if file.startswith(library) and file.endswith(".py"):
        print(file[len(library):])
"""
    done = instance.run([SYSTEM_PYTHON, "-ISXutf8", "-c", code], check=True)
    probe = [SYSTEM_PYTHON, "-ISc", "import os; print(os.path.dirname(os.__file__))"]
    library = Path(subprocess.run(probe, capture_output=True, text=True).stdout.strip())
    files = done.stdout.split()
    assert "urllib/request.py" in files
    for file in files:
        for place, names in Reads(file, (library / file).read_bytes()).places.items():
            assert place in STANDARD_LIBRARY, f"{place} reads {names or 'the environment'}"
            assert names <= {*STANDARD_LIBRARY[place]}, f"which variables does {place} read?"


GETENV_C = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <unistd.h>
static char *noting(const char *function, const char *name) {
    char *(*real)(const char *) = (char *(*)(const char *)) dlsym(RTLD_NEXT, function);
    FILE *file = fopen("/tmp/asked-for", "a");
    if (file) { fprintf(file, "%s\\n", name); fclose(file); }
    return real(name);
}
char *getenv(const char *name) { return noting("getenv", name); }
char *secure_getenv(const char *name) { return noting("secure_getenv", name); }
"""


def test_what_asks_getenv_while_an_event_is_delivered_is_in_the_table(
    instance: Instance, tmp_path: Path
) -> None:
    need(shutil.which("cc"), "needs a C compiler")
    (tmp_path / "getenv.c").write_text(GETENV_C)
    command = ["cc", "-shared", "-fPIC", "-o", "getenv.so", "getenv.c", "-ldl"]
    subprocess.run(command, cwd=tmp_path, check=True)
    instance.write("/root/getenv.so", (tmp_path / "getenv.so").read_bytes())
    instance.hook(before=[("LD_PRELOAD", "/root/getenv.so")])
    instance.eventbridge.wait_for(1)
    asked_for = set(instance.read("/tmp/asked-for").split())
    assert "OPENSSL_CONF" in asked_for
    known = names_in(IN_C) | names_in(BEFORE_THE_PROGRAM)
    assert {name for name in asked_for if not matches(name, known)} == set()


# None of them changes anything


class Told(NamedTuple):
    """All that a run of the hook brought about."""

    entry: dict[str, object]
    destinations: list[tuple[str, str | None, str]]
    asked_of_imds: list[tuple[str, str]]
    opened: frozenset[str]
    """What it did with files and addresses, as strace has it; numbers are N."""


def run_traced(box: Instance, before: Mapping[str, str]) -> Told:
    box.reset()
    calls = "trace=%file,%network,execve,chdir"
    result = box.hook(before=[*before.items()], strace=["-s", "300", "-e", calls])
    assert result.returncode == 0
    (entry,) = box.eventbridge.wait_for(1)
    eventually(lambda: box.spool() == [])
    box.kill_deliverers()
    return Told(
        {**entry.raw, "Time": 0},
        [
            (call.host, call.server_name, features_in_order(call.headers["user-agent"]))
            for call in box.eventbridge.calls()
        ],
        [(request.method, request.path) for request in box.imds.requests()],
        frozenset(traced(box.read(STRACE_LOG))),
    )


def features_in_order(user_agent: str) -> str:
    """botocore lists its features in any order."""
    return re.sub(r"(?<= m/)\S+", lambda m: ",".join(sorted(m[0].split(","))), user_agent)


def traced(log: str) -> Iterator[str]:
    """The calls of a trace, without process ids, results and what else is another one each time."""
    for line in log.splitlines():
        call = re.match(r"\d+ +(\w+)\((.*)", line)
        if not call or call[1] not in FILE_CALLS:
            continue
        paths = re.findall(r'"((?:[^"\\]|\\.)*)"', call[2])
        if call[1] == "execve":
            paths = paths[:1]
        addresses = re.findall(r"sin6?_port=htons\((\d+)\)|inet_\w+\((?:AF_INET6, )?\"", call[2])
        yield " ".join([call[1], *(re.sub(r"\d+", "N", path) for path in paths), *addresses])


FILE_CALLS = {
    *(
        "open",
        "openat",
        "stat",
        "lstat",
        "newfstatat",
        "statx",
        "access",
        "faccessat",
        "faccessat2",
    ),
    *("readlink", "readlinkat", "execve", "chdir", "mkdir", "mkdirat", "rename", "renameat"),
    *("renameat2", "unlink", "unlinkat", "connect", "bind"),
}


@pytest.fixture(scope="module")
def untouched(shared_instance: Instance) -> Told:
    """A run as it is without a user's variables, once the cache is there."""
    need_root("strace")
    run_traced(shared_instance, {})
    return run_traced(shared_instance, {})


BATCHES = {
    "shiv and botocore": {k: v for k, v in ARCHIVE.items() if "urllib3" not in k},
    "the standard library": STANDARD_LIBRARY,
    **{re.split("[:,]", where)[0]: {where: names} for where, names in IN_C.items()},
}


@pytest.mark.root
@pytest.mark.parametrize("batch", BATCHES)
def test_no_variable_changes_the_event_its_destination_or_a_file_that_is_opened(
    untouched: Told, instance: Instance, batch: str
) -> None:
    told = run_traced(instance, without_early(hostile(BATCHES[batch])))
    assert told.entry == untouched.entry
    assert told.destinations == untouched.destinations
    assert told.asked_of_imds == untouched.asked_of_imds
    assert told.opened ^ untouched.opened == frozenset()


def without_early(variables: Mapping[str, str]) -> dict[str, str]:
    """Without those that something opens files for before the program."""
    early = names_in(BEFORE_THE_PROGRAM)
    return {name: value for name, value in variables.items() if not matches(name, early)}


@pytest.mark.root
@pytest.mark.parametrize("type_", ["open_session", "close_session"])
def test_what_is_read_before_the_program_does_not_change_the_event(
    untouched: Told, instance: Instance, type_: str
) -> None:
    result = instance.hook(type_, before=[*hostile(BEFORE_THE_PROGRAM).items()])
    assert result.returncode == 0
    (entry,) = instance.eventbridge.wait_for(1)
    state = {"open_session": "opened", "close_session": "closed"}[type_]
    assert {**entry.raw, "Time": 0} == {
        **untouched.entry,
        "Detail": str(untouched.entry["Detail"]).replace("opened", state),
    }


@pytest.mark.root
def test_the_deliverer_has_an_empty_environment(instance: Instance) -> None:
    """Also what the kernel shows of it belongs to the hook, not to what it runs."""
    everything = {**hostile(ARCHIVE), **hostile(STANDARD_LIBRARY), **hostile(IN_C)}
    instance.write("/root/.aws/config", CREDENTIAL_PROCESS, 0o600)
    script = "#!/bin/sh\nexec >/tmp/environment\ntr '\\0' '\\n' </proc/$$/environ\nexit 1\n"
    instance.write("/root/process", script, 0o700)
    instance.hook(before=[*everything.items()])
    instance.syslog.wait_for("")
    names = {line.partition("=")[0] for line in instance.read("/tmp/environment").splitlines()}
    assert names <= {"RES_OPTIONS", "PATH", "PWD", "SHLVL", "_", "LC_CTYPE"}


CREDENTIAL_PROCESS = """\
[default]
ca_bundle = /root/test-ca.pem
credential_process = /root/process
"""


# The fuzzer

ITEMS = ("SERVICE", "USER", "TTY", "RHOST", "RUSER", "TYPE")
FIELDS = ("username", "remote_host", "session", "service", "tty", "remote_user")
INTERESTING = [f"PAM_{item}".encode() for item in ITEMS] + [
    *(b"", b"PAM_", b"TATTLE_TIME", b"TATTLE_BOOT", b"SSH_CONNECTION", b"SSH_AUTH_INFO_0"),
    *(b"PAM_USER\n", b"\nPAM_SERVICE", b"PAM_SERVICE=sshd", b"TATTLE_UNVERIFIED_PAM_USER"),
]
no_nul = st.binary(max_size=30).map(lambda value: value.replace(b"\0", b"\n"))
values = st.one_of(
    no_nul,
    st.sampled_from(
        [
            *(b"root", b"", b"open_session", b"close_session", b"PAM_SERVICE=", b"\nPAM_TYPE=x"),
            *(b"PAM_SERVICE=sshd\nPAM_USER=root\nPAM_TYPE=open_session", b"=", b"\xff\xfe", b'"'),
        ]
    ),
)
variables = st.one_of(
    st.tuples(st.one_of(st.sampled_from(INTERESTING), no_nul), values).map(b"=".join),
    no_nul,  # no `=` in it, mostly
)
user_part = st.lists(variables, max_size=8)
genuine_items = st.fixed_dictionaries(
    {
        b"PAM_SERVICE": values,
        b"PAM_USER": values.filter(bool),
        b"PAM_TTY": st.none() | values,
        b"PAM_RHOST": st.none() | values,
        b"PAM_RUSER": st.none() | values,
        b"PAM_TYPE": st.sampled_from([b"open_session", b"close_session"]),
    }
)
Items = dict[bytes, Union[bytes, None]]


def block_of(items: Items) -> list[bytes]:
    names = [f"PAM_{item}".encode() for item in ITEMS]  # hypothesis gives them in any order
    values = [(name, items[name]) for name in names]
    return [name + b"=" + value for name, value in values if value is not None]


def environ_of(block: Iterable[bytes]) -> bytes:
    return b"".join(variable + b"\0" for variable in block)


def entry_of(environ: bytes) -> tuple[str, dict[str, str], set[str]]:
    """As the hook and then the deliverer do it: the detail, the PAM items, the moment's names."""
    block = trusted_block(environ)
    session = parse(block + moment(environ[: -len(block)]))
    assert session.moment["TATTLE_PARENT"] == str(os.getppid())
    ours = {name for name in session.moment if not name.startswith("TATTLE_UNVERIFIED_SSH_")}
    return detail(session, FIELDS, {}, lambda _: None, lambda _: False), session.pam, ours


MOMENT = {
    *("TATTLE_TIME", "TATTLE_UPTIME", "TATTLE_PARENT", "TATTLE_PARENT_START", "TATTLE_BOOT"),
}


@settings(max_examples=FUZZED_BLOCKS, deadline=None, suppress_health_check=list(HealthCheck))
@given(before=user_part, items=genuine_items)
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_environment_before_a_genuine_block_changes_the_entry(
    before: list[bytes], items: Items
) -> None:
    genuine = environ_of(block_of(items))
    told, pam, ours = entry_of(environ_of(before) + genuine)
    assert (told, pam, ours) == entry_of(genuine)
    assert ours == MOMENT
    assert pam == {
        name.decode(): value.decode(errors="backslashreplace")
        for name, value in items.items()
        if value is not None
    }


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(before=user_part, items=genuine_items, data=st.data())
def test_an_odd_block_is_refused(before: list[bytes], items: Items, data: st.DataObject) -> None:
    """But for one without its PAM_SERVICE, which PAM always knows, after one of the user's."""
    block = block_of(items)
    oddity = data.draw(st.sampled_from(["swap", "twice", "more", "no service", "cut", "no type"]))
    place = data.draw(st.integers(1, len(block) - 1))
    if oddity == "swap":
        other = data.draw(st.integers(0, len(block) - 1).filter(lambda n: n != place))
        block[place], block[other] = block[other], block[place]
    elif oddity == "twice":
        block.insert(data.draw(st.integers(place, len(block))), block[place])
    elif oddity == "more":
        name = data.draw(no_nul).replace(b"=", b"")
        block.insert(data.draw(st.integers(place, len(block))), b"X" + name + b"=1")
    elif oddity == "no service":
        del block[0]
        before = [variable for variable in before if not variable.startswith(b"PAM_SERVICE=")]
    elif oddity == "no type":
        block[-1] = b"PAM_TYPE=" + data.draw(
            st.sampled_from([b"", b"auth", b"setcred", b"open_session ", b"OPEN_SESSION"])
        )
    environ = environ_of([*before, *block])
    if oddity == "cut":
        environ = environ[: -data.draw(st.integers(1, 10))]
    with pytest.raises(TattleError, match="refused"):
        trusted_block(environ)


@pytest.mark.parametrize(
    "environ",
    [
        b"",
        b"\0",
        b"PAM_USER=alice\0PAM_TYPE=open_session\0",
        b"PAM_SERVICE=sshd\0PAM_TYPE=open_session\0",
        b"PAM_SERVICE=sshd\0PAM_USER=\0PAM_TYPE=open_session\0",
        b"PAM_SERVICE=sshd\0PAM_USER=alice\0",
        b"PAM_SERVICE=sshd\0PAM_USER=alice\0PAM_TYPE=open_session",
        b"PAM_SERVICE=sshd\0PAM_USER=alice\0PAM_TYPE=auth\0",
        b"PAM_SERVICE=sshd\0PAM_TYPE=open_session\0PAM_USER=alice\0",
        b"PAM_SERVICE=sshd\0PAM_USER=alice\0PAM_TYPE=open_session\0A=1\0",
        b"PAM_SERVICE=sshd\0PAM_USER=alice\0PAM_TYPE=open_session\0\0",
        b"PAM_SERVICE=sshd\0A=1\0PAM_USER=alice\0PAM_TYPE=open_session\0",
        b"PAM_SERVICE=sshd\0PAM_USER=alice\0PAM_USER=root\0PAM_TYPE=open_session\0",
        b"PAM_SERVICE=sshd\0PAM_USER=alice\0PAM_RHOST=a\0PAM_TTY=b\0PAM_TYPE=open_session\0",
        b"xPAM_SERVICE=sshd\0PAM_USER=alice\0PAM_TYPE=open_session\0",
    ],
)
def test_a_block_that_pam_exec_does_not_make_is_refused(environ: bytes) -> None:
    with pytest.raises(TattleError, match="refused"):
        trusted_block(environ)


@pytest.mark.root
@pytest.mark.parametrize(
    "odd",
    [
        {"user": None},
        {"user": ""},
        {"type": "auth"},
        {"type": ""},
        {"service": None, "tty": None},
    ],
)
def test_the_hook_refuses_an_odd_block_with_a_line_in_the_log(
    instance: Instance, odd: dict[str, Text | None]
) -> None:
    settings: dict[str, Any] = {"before": [("PAM_SERVICE", "sshd"), ("A", "1")], **odd}
    result = instance.hook(**settings)
    assert result.returncode == 64
    assert "refused" in instance.syslog.wait_for("").message
    assert instance.spool() == []


@pytest.mark.root
@pytest.mark.slow
@settings(
    max_examples=FUZZED_RUNS,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(
    before=st.lists(st.tuples(st.one_of(st.sampled_from(INTERESTING), no_nul), values), max_size=8),
    user=values.filter(bool),
    rhost=st.none() | values,
    type_=st.sampled_from(["open_session", "close_session"]),
)
def test_the_artifact_is_no_more_impressed(
    shared_instance: Instance,
    before: list[tuple[bytes, bytes]],
    user: bytes,
    rhost: bytes | None,
    type_: str,
) -> None:
    box = shared_instance
    box.eventbridge.clear()
    early = names_in(BEFORE_THE_PROGRAM)
    before = [one for one in before if not matches(one[0].decode("latin-1"), early)]
    result = box.hook(type_, user=user, rhost=rhost, before=before)
    assert result.returncode == 0
    (entry,) = box.eventbridge.wait_for(1)
    assert entry.detail == {
        "username": user.decode(errors="backslashreplace"),
        "remote_host": (rhost or b"").decode(errors="backslashreplace"),
        "session": {"open_session": "opened", "close_session": "closed"}[type_],
    }
