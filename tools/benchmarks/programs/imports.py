"""Imports most of Python's standard library, and nothing else: how much memory does that take?"""

import importlib

MODULES = """
abc argparse array ast asyncio base64 bdb binascii bisect bz2 calendar cmath cmd code codecs codeop
collections colorsys compileall concurrent.futures configparser contextlib contextvars copy copyreg
cProfile csv ctypes curses dataclasses datetime dbm decimal difflib dis doctest email
email.mime.multipart enum errno fcntl filecmp fileinput fnmatch fractions ftplib functools getopt
getpass gettext glob graphlib grp gzip hashlib heapq hmac html html.parser http http.client
http.cookiejar http.server imaplib importlib.metadata inspect io ipaddress itertools json keyword
linecache locale logging logging.config logging.handlers lzma mailbox marshal math mimetypes mmap
modulefinder multiprocessing multiprocessing.pool netrc numbers operator optparse os pathlib pdb
pickle pickletools pkgutil platform plistlib poplib posixpath pprint profile pstats pty pwd
py_compile pyclbr pydoc queue quopri random re reprlib resource runpy sched secrets select selectors
shelve shlex shutil signal site smtplib socket socketserver sqlite3 ssl stat statistics string
stringprep struct subprocess symtable sysconfig tabnanny tarfile tempfile termios textwrap threading
time timeit token tokenize tomllib trace traceback tracemalloc tty types typing unicodedata unittest
unittest.mock urllib.error urllib.parse urllib.request urllib.robotparser uuid venv warnings wave
weakref webbrowser wsgiref.simple_server xml.dom.minidom xml.etree.ElementTree xml.sax xmlrpc.client
xmlrpc.server zipapp zipfile zipimport zlib zoneinfo
"""

for name in MODULES.split():
    try:
        importlib.import_module(name)
    except ImportError:
        pass  # Not every build of Python has every extension.
