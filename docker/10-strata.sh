#!/bin/sh
# Runs once, when the image initialises its data directory.
set -eu
psql -v ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "${POSTGRES_DB:-$POSTGRES_USER}" -c 'CREATE EXTENSION strata'
