# SPDX-License-Identifier: Apache-2.0
"""Cloud Storage: google-cloud-storage for all but bulk reads, which are our own."""
