"""Storage: the one door to files. No other room opens, writes, moves or removes one.

A file changes by being written beside its place and moved there, and a folder by being built
beside its place and moved there, so a crash leaves what was there before or what comes after, and
nothing between. In a bucket, gs:// or s3://, where nothing can be moved, an object is written as a
whole, and the objects of a folder before the one that readers look for.

Of a `Path`, other rooms only join and read what it says of itself: `path / "x"`, `.name`,
`.parent`, `.exists()`, `.is_file()`, `.is_dir()`, `.stat()`.
"""

from matta_jax.storage._failures import writing as writing
from matta_jax.storage._failures import writing_by_library as writing_by_library
from matta_jax.storage._files import append_line as append_line
from matta_jax.storage._files import copy_file as copy_file
from matta_jax.storage._files import in_memory as in_memory
from matta_jax.storage._files import new_file as new_file
from matta_jax.storage._files import num_bytes as num_bytes
from matta_jax.storage._files import open_new as open_new
from matta_jax.storage._files import open_old as open_old
from matta_jax.storage._files import read_bytes as read_bytes
from matta_jax.storage._files import read_json as read_json
from matta_jax.storage._files import read_piece as read_piece
from matta_jax.storage._files import read_text as read_text
from matta_jax.storage._files import recover_lines as recover_lines
from matta_jax.storage._files import replace_text as replace_text
from matta_jax.storage._files import share_file as share_file
from matta_jax.storage._folders import free_bytes as free_bytes
from matta_jax.storage._folders import glob as glob
from matta_jax.storage._folders import grown_folder as grown_folder
from matta_jax.storage._folders import make_folder as make_folder
from matta_jax.storage._folders import match as match
from matta_jax.storage._folders import move_folder as move_folder
from matta_jax.storage._folders import new_folder as new_folder
from matta_jax.storage._folders import publish_files as publish_files
from matta_jax.storage._folders import remove_file as remove_file
from matta_jax.storage._folders import remove_folder as remove_folder
from matta_jax.storage._folders import scratch_folder as scratch_folder
from matta_jax.storage._json import is_number as is_number
from matta_jax.storage._json import is_whole as is_whole
from matta_jax.storage._json import json_text as json_text
from matta_jax.storage._json import parse_json as parse_json
from matta_jax.storage._lines import GrowingFile as GrowingFile
from matta_jax.storage._lines import Pace as Pace
from matta_jax.storage._locks import locked as locked
from matta_jax.storage._locks import owner_token as owner_token
from matta_jax.storage._paths import Path as Path
from matta_jax.storage._paths import home_cache as home_cache
from matta_jax.storage._paths import in_bucket as in_bucket
from matta_jax.storage._paths import kvstore as kvstore
from matta_jax.storage._paths import leads_out as leads_out
from matta_jax.storage._paths import local_copy as local_copy
from matta_jax.storage._paths import path as path
from matta_jax.storage._paths import resolve as resolve
from matta_jax.storage._paths import working_folder as working_folder
