// SPDX-License-Identifier: GPL-2.0-or-later
// Boost.Asio. Boost 1.74's asio/awaitable.hpp uses std::exchange without including <utility>: it goes first.
#pragma once

#include <utility>
// Not sorted into the line above.
#include <boost/asio.hpp>
