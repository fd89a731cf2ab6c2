// SPDX-License-Identifier: GPL-2.0-or-later
// Boost.Asio's own code, once for all programs (BOOST_ASIO_SEPARATE_COMPILATION) instead of in every file that uses it.
// The second needs what the first includes.
// clang-format off
#include "coordinator/protocol/asio.h"
#include <boost/asio/impl/src.hpp>
// clang-format on
